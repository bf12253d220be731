"""Images per second of recomposition without a denoiser, by variant, seam and size.

    python benchmarks/recompose.py [--size 256] [--count 128] [--rounds 3] [--patients 40]

The images and masks are those of drawn patients, with Mass, Pneumothorax and Nodule. Beside the images, the rows of the
plan per second, which compares all heads. Best of the rounds. Target: paste and half at least 20 images a second on 2
cores at 256 px, with the default seam.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import table
from torch import Tensor

from medlt.config import PhantomData
from medlt.data.pixels import PixelCache
from medlt.data.regions import Regions
from medlt.data.source import open_data
from medlt.localise.given import Given
from medlt.localise.measure import Localisation
from medlt.localise.prior import PositionPrior
from medlt.localise.trust import Trust
from medlt.store import Store
from medlt.synthesis.composite import Difference, StartDecoder
from medlt.synthesis.plan import TrainTable
from medlt.synthesis.recompose import RecomposeSettings, Recomposition

FINDINGS = ("Mass", "Pneumothorax", "Nodule")


def method(folder: Path, size: int, patients: int, variant: str, seam: str) -> Recomposition:
    """Return recomposition of drawn patients."""
    manifest = open_data(PhantomData(patients=patients, size=size, imbalance=2), seed=0, folder=folder / "phantom")
    cache = PixelCache(Store(folder / "store"), workers=2)
    ready, _ = cache.prepare(manifest, (size,))
    train = ready.split("train")
    regions, cells = Regions.of(train), (size // 8, size // 8)
    own = {str(uid): str(one) for uid, one in train.rows["patient_id"].items()}

    def pixels(uids: Sequence[str]) -> Tensor:
        at = {uid: i for i, uid in enumerate(dict.fromkeys(uids))}
        return cache.images(train, size, list(at))[[at[uid] for uid in uids]] / 255

    return Recomposition(
        train=TrainTable(train.rows.assign(fold=0), train.findings, FINDINGS),
        difference=Difference(pixels, StartDecoder(lambda z: z), seam=seam),
        where=Localisation(
            Trust({"mask": Given(regions, "mask", cells)}, cells),
            regions,
            patients=own,
            prior=PositionPrior(regions, frozenset(own), own, cells),
        ),
        size=size,
        settings=RecomposeSettings(variant=variant),
    )


def main() -> None:
    """Measure every variant and seam."""
    read = argparse.ArgumentParser()
    read.add_argument("--size", type=int, default=256)
    read.add_argument("--count", type=int, default=128)
    read.add_argument("--rounds", type=int, default=3)
    read.add_argument("--patients", type=int, default=40)
    args = read.parse_args()
    lines = ["| variant | seam | size, px | threads | images / s | plan, rows / s |", "|---|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as place:
        for variant, seam in (("paste", "feather"), ("half", "feather"), ("paste", "poisson"), ("half", "poisson")):
            made = method(Path(place), args.size, args.patients, variant, seam)
            need = dict.fromkeys(FINDINGS, -(-args.count // len(FINDINGS)))
            made.plan(dict.fromkeys(FINDINGS, 1), 1)  # reads masks and prior once
            began = time.perf_counter()
            rows = made.plan(need, 0).head(args.count)
            planned = len(rows) / (time.perf_counter() - began)
            spent = []
            for _ in range(args.rounds):
                began = time.perf_counter()
                done = sum(len(batch.images) for batch in made.run(rows))
                spent.append(time.perf_counter() - began)
            rate, threads = done / min(spent), torch.get_num_threads()
            lines.append(f"| {variant} | {seam} | {args.size} | {threads} | {rate:.1f} | {planned:.0f} |")
    table("recompose", lines)


if __name__ == "__main__":
    main()
