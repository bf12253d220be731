"""The stages that `benchmarks/growth.py` measures, and the synthetic images, features and tables they are given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medlt.checks.bands import Rule, band
from medlt.checks.near_copy import near_copy
from medlt.checks.real_copy import real_copies
from medlt.checks.sanity import copies
from medlt.data.convert.encode import png
from medlt.data.duplicates import BITS, ImageHash, duplicates
from medlt.data.manifest import Manifest
from medlt.evaluation.quality import quality
from medlt.privacy.audit.search import low_pass
from medlt.recipes._publish import shards
from medlt.rng import numpy_generator, torch_generator
from medlt.synthesis.pairing import nearest_allowed, pair_rule
from medlt.synthesis.plan import PlanSettings, TrainTable, plan_fusion
from medlt.types import Batch, CheckResult
from medlt.writer import DatasetWriter, write_metadata

FINDINGS = ("Rare", "Common", "No Finding")
Work = Callable[[], object]


def blocks(count: int, name: str, block: int = 1000) -> Iterator[Tensor]:
    """Yield smooth images uint8 [n,1,32,32], no two alike."""
    draw = torch_generator("growth", name)
    for start in range(0, count, block):
        coarse = torch.rand(min(block, count - start), 1, 8, 8, generator=draw)
        yield (functional.interpolate(coarse, size=(32, 32), mode="bilinear") * 255).to(torch.uint8)


def smooth(count: int, name: str) -> Tensor:
    """The images of `blocks`, uint8 [count,1,32,32]."""
    return torch.cat(list(blocks(count, name)))


class Files:
    """Smooth images as PNG files, as those of a run are."""

    def __init__(self, count: int, name: str, folder: Path) -> None:
        self.uids = [str(i) for i in range(count)]
        self.place = Path(tempfile.mkdtemp(dir=folder))
        for i, image in enumerate(image for block in blocks(count, name) for image in block):
            self.put(i, image)

    def put(self, number: int, image: Tensor) -> None:
        """Write an image [1,32,32]."""
        (self.place / f"{number}.png").write_bytes(png(image[0].numpy()))

    def read(self, uids: Sequence[str]) -> Tensor:
        """Decode some images."""
        return torch.stack([torch.from_numpy(np.array(Image.open(self.place / f"{uid}.png")))[None] for uid in uids])


def points(count: int, name: str, size: int = 64) -> np.ndarray:
    """Features float32 [count,size] around a plane of 16 dimensions."""
    draw, plane = numpy_generator("growth", name), numpy_generator("plane").normal(size=(16, size))
    made = np.zeros((count, size), np.float32)
    for part in np.array_split(made, -(-count // 1000)):
        part[:] = draw.normal(size=(len(part), 16)) @ plane + 0.3 * draw.normal(size=part.shape)
    return made


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
    made = Files(count, "made", folder)
    for number, i in enumerate(range(count // 2, count, 100)):
        made.put(i, made.read([str(number)])[0])
    return lambda: copies(made.uids, made.read)


def copies_of_real(count: int, folder: Path) -> Work:
    made, real = Files(count, "made", folder), Files(count, "real", folder)
    for i in range(0, count, 100):
        made.put(i, real.read([str(i)])[0].flip(-1))
    return lambda: real_copies(made.uids, made.read, real.uids, real.read)


def fusion_of(train: TrainTable, planned: int) -> Work:
    """Plan rows, two a slot, with constant scores and synthetic maps."""
    maps = points(len(train.table), "maps").clip(0)
    place = {uid: i for i, uid in enumerate(train.table.index)}
    explainer: Any = SimpleNamespace(
        scores_of=lambda uids: np.full((len(uids), 3), 0.5, np.float32),
        maps_of=lambda uids, finding: maps[[place[uid] for uid in uids]],
    )
    return lambda: plan_fusion(train, explainer, PlanSettings(num_candidates=2), {"Rare": planned // 2}, 0)


def fusion_plan(count: int, folder: Path) -> Work:
    return fusion_of(train_table(count, 100), 1000)


def planned_rows(count: int, folder: Path) -> Work:
    return fusion_of(train_table(1000, 100), count)


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
    check = near_copy([low_pass], smooth(1000, "held out"), smooth(3000, "train"))
    made = torch.cat([one.float() / 255 for one in blocks(1000, "made")])
    rows = pd.DataFrame(index=pd.Index([str(i) for i in range(len(made))], name="uid"))
    batches = [Batch(rows[i : i + 32], made[i : i + 32], rows[i : i + 32]) for i in range(0, len(made), 32)]

    def work() -> None:
        for number in range(-(-count // 32)):
            check(batches[number % len(batches)])

    return work


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


def radiograph_codes(count: int) -> np.ndarray:
    """Codes [count,25] whose bits depend on each other as those of 1,739 films of ChestX-ray14 do.

    A bit is the sign of a constant, 12 common factors of half the variance, and noise. Mean and sd of the distance of
    two codes are 93 and 11, of films 93 and 9; a share of 0.0011 of all pairs agrees in a key, of films 0.0010.
    """
    draw = numpy_generator("growth", "codes")
    factors, constant = draw.normal(size=(12, BITS)), 0.3 * draw.normal(size=BITS)
    factors /= np.sqrt(2) * np.linalg.norm(factors, axis=0)
    parts = [np.zeros((0, (BITS + 7) // 8), np.uint8)]
    for start in range(0, count, 1000):
        size = min(1000, count - start)
        value = constant + draw.normal(size=(size, 12)) @ factors + np.sqrt(0.5) * draw.normal(size=(size, BITS))
        parts.append(np.packbits(value > 0, axis=1))
    return np.concatenate(parts)


def across_splits(count: int, folder: Path) -> Work:
    codes = radiograph_codes(count)
    codes[1::100] = codes[: len(codes[1::100])]
    uids = pd.Index([str(i) for i in range(count)], name="uid")
    rows = pd.DataFrame({"patient_id": uids, "split": np.where(np.arange(count) % 5, "train", "test")}, index=uids)
    hashes = {uid: ImageHash(uid.encode(), code.tobytes()) for uid, code in zip(uids, codes, strict=True)}
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
    "rows of a plan": Stage(planned_rows, "planned rows, from 1,000 train images"),
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
