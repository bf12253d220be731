"""How the cost of each stage grows with the number of images: CPU time, exponent, and peak memory.

    python benchmarks/growth.py [--rows 1000 3000 10000 30000] [--stages NAME ...]
    python benchmarks/growth.py --short

Each stage is a function of the library, run alone on synthetic images of 32 px, features or tables. The exponent is the
slope of the logarithm of CPU time against that of the number of rows. Each stage is measured in a process of its own,
whose peak of resident memory is given, with that of its imports. --short measures few rows in one process, several
times each, takes the least time, and ends with 1 if an exponent exceeds BOUND. An exponent is a ratio within one run,
so another program on the machine disturbs it little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import table
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medlt.checks.bands import Rule, band
from medlt.checks.near_copy import near_copy
from medlt.checks.real_copy import real_copies
from medlt.checks.sanity import copies
from medlt.data.convert.encode import png
from medlt.data.duplicates import ImageHash, duplicates
from medlt.data.manifest import Manifest
from medlt.evaluation.quality import quality
from medlt.privacy.audit.search import low_pass
from medlt.recipes._publish import shards
from medlt.recipes._setup import peak_rss_mb
from medlt.rng import numpy_generator, torch_generator
from medlt.synthesis.pairing import nearest_allowed, pair_rule
from medlt.synthesis.plan import PlanSettings, TrainTable, plan_fusion
from medlt.types import Batch, CheckResult
from medlt.writer import DatasetWriter, write_metadata

ROWS = (1000, 3000, 10_000, 30_000)
SHORT = (400, 800, 1600)
BOUND = 1.5
REPEATS = 2
FINDINGS = ("Rare", "Common", "No Finding")
Work = Callable[[], object]


def smooth(count: int, name: str, block: int = 1000) -> Tensor:
    """Smooth images uint8 [count,1,32,32], no two alike, made a block at a time."""
    draw, parts = torch_generator("growth", name), []
    for start in range(0, count, block):
        coarse = torch.rand(min(block, count - start), 1, 8, 8, generator=draw)
        parts.append((functional.interpolate(coarse, size=(32, 32), mode="bilinear") * 255).to(torch.uint8))
    return torch.cat(parts)


def named(images: Tensor) -> tuple[list[str], Callable[[Sequence[str]], Tensor]]:
    """Return uids, and a function that decodes the PNG files of some of them."""
    files = [png(one.numpy()) for one in images[:, 0]]

    def read(uids: Sequence[str]) -> Tensor:
        return torch.stack([torch.from_numpy(np.array(Image.open(BytesIO(files[int(uid)]))))[None] for uid in uids])

    return [str(i) for i in range(len(images))], read


def points(count: int, name: str, size: int = 64) -> np.ndarray:
    """Features float32 [count,size] around a plane of 16 dimensions."""
    draw, plane = numpy_generator("growth", name), numpy_generator("plane").normal(size=(16, size))
    return (draw.normal(size=(count, 16)) @ plane + 0.3 * draw.normal(size=(count, size))).astype(np.float32)


def train_table(count: int, tail: int) -> TrainTable:
    """Train rows, `tail` of them rare; four images a patient, three folds, two projections."""
    number = np.arange(count)
    labels = {"Rare": number < tail, "Common": (number >= tail) & (number % 2 == 0)}
    labels |= {"No Finding": ~(labels["Rare"] | labels["Common"])}
    rows = pd.DataFrame({name: column.astype(float) for name, column in labels.items()})
    rows = rows.assign(
        patient_id=[f"p{i // 4}" for i in number], fold=number // 4 % 3, view=np.where(number % 5, "PA", "LL")
    )
    rows.index = pd.Index([f"u{i:07d}" for i in number], name="uid")
    return TrainTable(rows, FINDINGS, ("Rare",))


def copies_of_set(count: int, folder: Path) -> Work:
    images = smooth(count, "made")
    images[count // 2 :: 100] = images[: len(images[count // 2 :: 100])]
    given = named(images)
    return lambda: copies(*given)


def copies_of_real(count: int, folder: Path) -> Work:
    made, real = smooth(count, "made"), smooth(count, "real")
    made[::100] = real[::100].flip(-1)
    given = *named(made), *named(real)
    return lambda: real_copies(*given)


def fusion_plan(count: int, folder: Path) -> Work:
    train, maps = train_table(count, 100), points(count, "maps").clip(0)
    place = {uid: i for i, uid in enumerate(train.table.index)}
    explainer: Any = SimpleNamespace(
        scores_of=lambda uids: np.full((len(uids), 3), 0.5, np.float32),
        maps_of=lambda uids, finding: maps[[place[uid] for uid in uids]],
    )
    return lambda: plan_fusion(train, explainer, PlanSettings(num_candidates=2), {"Rare": 500}, 0)


def partners_of_a_tenth(count: int, folder: Path) -> Work:
    train, maps = train_table(count, count // 10), points(count, "maps").clip(0)
    uids = list(train.table.index)
    tails, heads = slice(0, count // 10), slice(count // 10, None)
    return lambda: nearest_allowed(maps[tails], maps[heads], pair_rule(train.table, uids[tails], uids[heads]), 16)


def bands(count: int, folder: Path) -> Work:
    reference, made = points(count, "real"), points(1000, "made")
    return lambda: band(reference).value(made)


def bands_of_images(count: int, folder: Path) -> Work:
    known, made = band(points(1000, "real")), points(count, "made")
    return lambda: [known.value(made[i : i + 32]) for i in range(0, count, 32)]


def published_bands(count: int, folder: Path) -> Work:
    reference = points(count, "real")
    return lambda: band(reference, rule=Rule(form="centre"))


def near_copy_limits(count: int, folder: Path) -> Work:
    held_out, train = smooth(count, "held out"), smooth(count, "train")
    return lambda: near_copy([low_pass], held_out, train)


def near_copies(count: int, folder: Path) -> Work:
    check, made = (
        near_copy([low_pass], smooth(1000, "held out"), smooth(3000, "train")),
        smooth(count, "made").float() / 255,
    )
    rows = pd.DataFrame(index=pd.Index([str(i) for i in range(count)], name="uid"))
    return lambda: [check(Batch(rows[i : i + 32], made[i : i + 32], rows[i : i + 32])) for i in range(0, count, 32)]


def writer(count: int, folder: Path) -> Work:
    uids = pd.Index([f"u{i:07d}" for i in range(count)], name="uid")
    columns = {
        "finding": "Rare",
        "slot": range(count),
        "candidate": 0,
        "parents": [["a", "b"]] * count,
        "seed": range(count),
    }
    rows, images = pd.DataFrame(columns, index=uids), torch.rand(32, 1, 32, 32, generator=torch_generator("growth"))

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            one = DatasetWriter(Path(place), "models", "run")
            for piece in shards(rows):
                if not one.has(piece):
                    results = [CheckResult(name, uid, 0.1, 1.0, True) for uid in piece.index for name in "abcdefgh"]
                    labels = pd.DataFrame({"Rare": 1.0}, index=piece.index)
                    one.write(piece, Batch(piece, images[: len(piece)], labels), results, list(piece.index))
            kept = one.kept()
            one.write_results(Path(place) / "checks.parquet")
            for i in range(0, count, 256):
                one.read(list(kept.index[i : i + 256]))
            one.publish(kept.index)
            write_metadata(Path(place), kept, ["Rare"], parents=True)

    return work


def tables(count: int, folder: Path) -> Work:
    train = train_table(count, 100).table
    rows = train.assign(
        path=[f"{uid}.png" for uid in train.index], split="train", content=[f"{i:032x}" for i in range(count)]
    )

    def work() -> None:
        manifest = Manifest(rows, FINDINGS, folder)
        manifest.digest()
        manifest.write(folder / f"{count}.parquet")
        Manifest.read(folder / f"{count}.parquet").where(rows["Rare"] == 1).labels()

    return work


def across_splits(count: int, folder: Path) -> Work:
    draw = numpy_generator("growth", "hashes")
    codes = draw.integers(0, 256, (count, 25), dtype=np.uint8)
    uids = pd.Index([str(i) for i in range(count)], name="uid")
    rows = pd.DataFrame({"patient_id": uids, "split": np.where(np.arange(count) % 5, "train", "test")}, index=uids)
    hashes = {uid: ImageHash(code.tobytes()[:16], code.tobytes()) for uid, code in zip(uids, codes, strict=True)}
    return lambda: duplicates(rows, hashes)


def quality_table(count: int, folder: Path) -> Work:
    real, made = points(count, "real"), points(count, "made")
    return lambda: quality(real, np.ones((count, 1)), made, ["Rare"] * count, ["Rare"])


@dataclass(frozen=True)
class Stage:
    """A stage and what its rows are; bounded: whether --short holds its exponent below BOUND."""

    prepare: Callable[[int, Path], Work]
    rows: str
    bounded: bool = True


STAGES = {
    "copies in a set": Stage(copies_of_set, "synthetic images"),
    "copies of real images": Stage(copies_of_real, "synthetic images, and as many real ones"),
    "plan of latent fusion": Stage(fusion_plan, "train images, 100 of the tail; 1,000 rows planned"),
    "partners": Stage(partners_of_a_tenth, "train images, a tenth of the tail, all of it used", bounded=False),
    "bands": Stage(bands, "real positives of one finding"),
    "images in a band": Stage(bands_of_images, "synthetic images, beside 1,000 real positives"),
    "bands as published": Stage(published_bands, "real positives of one finding", bounded=False),
    "near-copy limit": Stage(near_copy_limits, "train images, and as many held-out ones", bounded=False),
    "near copies": Stage(near_copies, "synthetic images, beside 3,000 train images"),
    "writer": Stage(writer, "synthetic images: shards, tables, images/"),
    "tables": Stage(tables, "rows of a manifest"),
    "duplicates across splits": Stage(across_splits, "images, a fifth of them of the test split"),
    "quality": Stage(quality_table, "real images, and as many synthetic ones", bounded=False),
}


def slope(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent of seconds against counts."""
    return float(np.polyfit(np.log(counts), np.log(np.maximum(seconds, 1e-4)), 1)[0])


def timed(work: Work) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def child(name: str, counts: Sequence[int]) -> None:
    """Measure one stage at rising counts, and print (CPU seconds, peak MB so far) of each."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        STAGES[name].prepare(200, Path(place))()  # imports and first calls
        print(json.dumps([(timed(STAGES[name].prepare(count, Path(place))), peak_rss_mb()) for count in counts]))


def measured(name: str, counts: Sequence[int]) -> list[tuple[float, float]]:
    """Return CPU seconds and peak memory, in MB, of one stage at these counts, in a process of its own."""
    command = [sys.executable, __file__, "--stages", name, "--child", "--rows", *map(str, sorted(counts))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]


def whole(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """The table of all stages."""
    heads = " | ".join(f"{count:,}, CPU s" for count in counts)
    lines = [
        f"| stage | rows | {heads} | exponent | last step | MB, first and last |",
        "|---|---|" + "---:|" * (len(counts) + 3),
    ]
    for name in names:
        seconds, mb = zip(*measured(name, counts), strict=True)
        shown = " | ".join(f"{one:.2f}" for one in seconds)
        ends = f"{slope(counts, seconds):.2f} | {slope(counts[-2:], seconds[-2:]):.2f} | {mb[0]:.0f}, {mb[-1]:.0f}"
        lines.append(f"| {name} | {STAGES[name].rows} | {shown} | {ends} |")
        print(lines[-1], flush=True)
    return lines


def exponents(names: Sequence[str], counts: Sequence[int] = SHORT) -> dict[str, float]:
    """Return the exponent of each stage at few rows, the least time of several."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            STAGES[name].prepare(200, Path(place))()
            works = [STAGES[name].prepare(count, Path(place)) for count in counts]
            rounds = [[timed(work) for work in works] for _ in range(REPEATS)]
            found[name] = slope(counts, np.min(rounds, axis=0).tolist())
    return found


def require_bounded(names: Sequence[str] = tuple(STAGES)) -> None:
    """Print the exponents at few rows. Raises SystemExit if one exceeds BOUND."""
    slopes = exponents([name for name in names if STAGES[name].bounded])
    print(*(f"{name}: exponent {one:.2f}" for name, one in slopes.items()), sep="\n")
    if over := [name for name, one in slopes.items() if not one <= BOUND]:
        raise SystemExit(f"growth: {', '.join(over)}: the exponent exceeds {BOUND}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--child", action="store_true")
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.stages[0], chosen.rows)
    elif chosen.short:
        require_bounded(chosen.stages)
    else:
        table("growth", whole(chosen.stages, chosen.rows))


if __name__ == "__main__":
    main()
