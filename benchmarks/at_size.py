"""The path of a collection of MIMIC-CXR-JPG's size: time, memory and disk of each stage.

    python benchmarks/at_size.py films [--films 60]
    python benchmarks/at_size.py rows [--rows 377110] [--folder FOLDER]

films: the pass that reads, hashes, validates and shrinks, on FILMS JPEG films of 2544 x 3056 px, with 1 and 2 workers
in turns. Targets: 2 workers at least 1.8 times as fast as 1, at most 300 KB an image at 512 px.

rows: a tree of MIMIC-CXR-JPG with the lists of MIMIC-CXR-LT 2023 and ROWS JPEG images of 96 px, all different; then
`medlt manifest`, `medlt validate --config` and `medlt augment`, each in a process of its own whose memory is sampled
twice a second. Trainings have few steps, so the time of their stages is that of reading and predicting all rows. The
time for full-size images is that of `films` times ROWS.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
from common import table
from PIL import Image

from medlt.data.layouts.mimic_cxr_lt import FINDINGS
from medlt.data.manifest import Manifest
from medlt.data.phantom.cohort import cohort
from medlt.data.phantom.render import film
from medlt.rng import numpy_generator

SHARES = np.geomspace(0.3, 0.0003, len(FINDINGS))
"""Share of images with each finding, head to tail."""
CONFIG = """
output_dir: run
artifacts_dir: artifacts
size: 64
threads: 2
data: {kind: manifest, path: mimic.parquet}
codec: {kind: identity, patch: 8}
sparse: {generations: 1, interaction_epochs: 1, batch_size: 256}
denoiser: {width: 32, levels: 2, steps: 20, batch_size: 32}
targets: {tail_below: 200, head_above: 10000, count: 1000, max_per_finding: 4}
checks: {folds: 2}
classifier: {size: 64, steps: 20, evaluate_every: 20}
"""


def films_of(size: int, count: int) -> list[np.ndarray]:
    """Phantom films, uint8 [size,size]."""
    records = cohort(max(count, 60), 0).to_dict("records")[:count]
    pictures = [film({str(name): value for name, value in one.items()}, 0, 128).image for one in records]
    return [cv2.resize(np.rint(one * 255).astype(np.uint8), (size, size)) for one in pictures]


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def large_films(folder: Path, count: int) -> Manifest:
    """Write JPEG films of 2544 x 3056 px, and return their manifest."""
    for i, base in enumerate(films_of(512, count)):
        large = cv2.resize(base, (2544, 3056), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        large += numpy_generator("grain", i).normal(0, 2.5, large.shape)
        Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=92)
    uids = pd.Index([f"u{i}" for i in range(count)], name="uid")
    columns = {"path": [f"{i}.jpg" for i in range(count)], "patient_id": uids, "split": "train", "view": "PA", "A": 1.0}
    return Manifest(pd.DataFrame(columns, uids), ("A",), folder)


def measure_films(count: int) -> None:
    """Time the pass on large films. OpenCV gets one thread, so that one worker is one core."""
    from medlt.data.pixels import PixelCache, read_into
    from medlt.store import Store

    head = "| sizes | workers | ms an image, wall | ms an image, CPU | KB an image in the cache |"
    lines, wall = [head, "|---|---|---|---|---|"], dict[tuple[str, int], list[float]]()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as place:
        manifest = large_films(Path(place), count)
        size_in = size_of(Path(place)) / count / 1e6
        for turn, sizes, workers in product(range(3), ((512,), (64, 224, 512)), (1, 2)):
            store, named = Path(place) / f"store {turn} {sizes} {workers}", ", ".join(map(str, sizes))
            began, cpu = time.perf_counter(), time.process_time()
            read_into(PixelCache(Store(store), workers), manifest, sizes)
            one, own = ((now - then) / count * 1000 for now, then in
                        ((time.perf_counter(), began), (time.process_time(), cpu)))  # fmt: skip
            wall.setdefault((named, workers), []).append(one)
            lines.append(f"| {named} | {workers} | {one:.0f} | {own:.0f} | {size_of(store) / count / 1000:.0f} |")
    ratios = [f"{min(wall[n, 1]) / min(wall[n, 2]):.2f} at {n} px" for n in dict.fromkeys(n for n, _ in wall)]
    lines += ["", f"Films of {size_in:.1f} MB. Two workers against one, best of three: {'; '.join(ratios)}."]
    table("at_size_films", lines)


def make_tree(folder: Path, rows: int) -> None:
    """Write the tree: images, metadata, and the lists of MIMIC-CXR-LT 2023."""
    rng, bases = numpy_generator("tree"), films_of(96, 200)
    subject = 10_000_000 + np.sort(rng.integers(0, max(2, rows // 6), rows))
    study = 50_000_000 + np.arange(rows) // 2
    dicom = [f"{i:08x}-{i:08x}-{i:08x}-{i:08x}-{i:08x}" for i in range(rows)]
    paths = [f"files/p{str(p)[:2]}/p{p}/s{s}/{d}.jpg" for p, s, d in zip(subject, study, dicom, strict=True)]
    for i, path in enumerate(paths):
        wave = cv2.resize(rng.normal(0, 22, (9, 9)).astype(np.float32), (96, 96), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(bases[i % len(bases)] + wave, 0, 255).astype(np.uint8)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
    labels = (rng.random((rows, len(FINDINGS))) < np.maximum(SHARES, 60 / rows)).astype(int)
    labels[:, FINDINGS.index("No Finding")] = 0
    labels[:, FINDINGS.index("No Finding")] = labels.sum(1) == 0
    ids = pd.DataFrame({"subject_id": subject, "study_id": study, "dicom_id": dicom})
    part = np.where(subject % 10 < 7, "train", np.where(subject % 10 < 8, "val", "test"))
    listed = ids.assign(path=paths, **{name: labels[:, k] for k, name in enumerate(FINDINGS)})
    for name in ("train", "val", "test"):
        listed[part == name].to_csv(folder / f"miccai2023_mimic-cxr-lt_labels_{name}.csv", index=False)
    views = rng.choice(["PA", "AP", "LATERAL"], rows, p=[0.3, 0.4, 0.3])
    ids.assign(ViewPosition=views).to_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)


def sampled(command: list[str], folder: Path) -> tuple[float, list[tuple[float, float]]]:
    """Run a command; return its seconds, and (time, MB of resident memory) twice a second."""
    began, samples = time.time(), []
    with (folder / "log").open("ab") as log:
        process = psutil.Popen([sys.executable, "-m", "medlt", *command], cwd=folder, stdout=log, stderr=log)
        while process.poll() is None:
            try:
                samples.append((time.time(), process.memory_info().rss / 1e6))
            except psutil.Error:
                break
            time.sleep(0.5)
        process.wait()
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}; see {folder / 'log'}")
    return time.time() - began, samples


def stages(log: Path, samples: list[tuple[float, float]]) -> list[tuple[str, float, float]]:
    """Return (stage, seconds, peak MB) of the stages in a run's log."""
    rows, started = [], {}
    for line in log.read_text().splitlines():
        stamp, _, text = line[:19], line[19], line[20:]
        try:
            at = datetime.fromisoformat(stamp).timestamp()
        except ValueError:
            continue
        name, _, rest = text.partition(": ")
        if rest == "started":
            started[name] = at
        elif rest.startswith("finished") and name in started:
            inside = [mb for when, mb in samples if started[name] <= when <= at + 1]
            rows.append((name, at - started[name], max(inside, default=float("nan"))))
    return rows


def measure_rows(rows: int, folder: Path) -> None:
    """Run the commands on a tree of this many images."""
    folder.mkdir(parents=True, exist_ok=True)
    source, work = folder / "tree", Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    if not (source / "mimic-cxr-2.0.0-metadata.csv.gz").is_file():
        source.mkdir(parents=True, exist_ok=True)
        make_tree(source, rows)
    (work / "run.yaml").write_text(CONFIG)
    lines = ["| stage | seconds | memory, MB |", "|---|---|---|"]
    for command in (
        ["manifest", "mimic-cxr-lt", str(source), "mimic.parquet", "--release", "2023"],
        ["validate", "mimic.parquet", "--config", "run.yaml", "--workers", "2", "--json"],
        ["augment", "run.yaml"],
    ):
        seconds, samples = sampled(command, work)
        lines.append(f"| `medlt {command[0]}` | {seconds:.0f} | {max(mb for _, mb in samples):.0f} |")
        if command[0] == "augment":
            inner = stages(work / "run" / "run.log", samples)
            lines += [f"| - {name} | {spent:.0f} | {peak:.0f} |" for name, spent, peak in inner]
        (work / "table.json").write_text(json.dumps(lines))
    used = {one.name: size_of(one) for one in (work / "artifacts").iterdir()}
    lines += ["", "| in the artifacts folder | MB | bytes an image |", "|---|---|---|"]
    lines += [f"| {name} | {size / 1e6:.0f} | {size / rows:.0f} |" for name, size in sorted(used.items())]
    table("at_size_rows", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["films", "rows"])
    parser.add_argument("--films", type=int, default=60)
    parser.add_argument("--rows", type=int, default=377_110)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    if chosen.what == "films":
        measure_films(chosen.films)
    elif chosen.folder is not None:
        measure_rows(chosen.rows, chosen.folder)
    else:
        with tempfile.TemporaryDirectory() as place:
            measure_rows(chosen.rows, Path(place))


if __name__ == "__main__":
    main()
