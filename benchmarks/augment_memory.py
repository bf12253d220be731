"""Memory of augmenting against the number of images.

    python benchmarks/augment_memory.py [FEW MANY]

The benchmark runs latent fusion, checks and shards on disk with small untrained networks over FEW and MANY plan rows,
each in a separate process, and compares peak resident memory. Target: ratio < 1.2 for 500 and 5,000.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import common
import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.checks.sanity import sanity
from medlt.diffusion.cache import Standardiser
from medlt.diffusion.decode import Decoder
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.schedulers import factory
from medlt.recipes._publish import make_images
from medlt.recipes._setup import RunFolder, peak_rss_mb
from medlt.rng import torch_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.store import Store
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.plan import PlanSettings, TrainTable
from medlt.testing import IdentityCodec
from medlt.training.runtime import Runtime

ROWS = 60
SIDE = 16


def collection() -> TrainTable:
    """Train rows u0, u1, ...: six rare ones, the others common."""
    uids = pd.Index([f"u{i}" for i in range(ROWS)], name="uid")
    labels = {"Rare": [float(i < 6) for i in range(ROWS)], "Common": [float(i >= 6) for i in range(ROWS)]}
    table = pd.DataFrame({"patient_id": uids, "fold": 0, **labels}, index=uids)
    return TrainTable(table, ("Rare", "Common"), ("Rare",))


def latents(uids: Sequence[str]) -> Tensor:
    """Standard normal [n,1,SIDE,SIDE], the same for a uid each time."""
    every = torch.randn(ROWS, 1, SIDE, SIDE, generator=torch_generator("latents"))
    return every[[int(uid[1:]) for uid in uids]]


def fusion() -> LatentFusion:
    """The method with untrained networks; latents are pixels."""
    return LatentFusion(
        train=collection(),
        coder=SimplicialCoder(1, 2, groups=4, vocabulary=4, width=8, temperature=0.3, seed=0),
        latents=latents,
        standardiser=Standardiser(torch.zeros(1), torch.ones(1)),
        backbone=LabelUNet(1, 2, 8).backbone(),
        decode=Decoder(IdentityCodec()),
        scheduler=factory("ddim", 20),
        plan_settings=PlanSettings(num_candidates=1),
        strength=0.2,
    )


def child(count: int) -> None:
    """Make `count` images; print peak memory and how many there are."""
    torch.set_num_threads(1)
    tree = {"data": {"kind": "phantom"}, "codec": {"kind": "train"}, "targets": {"num_candidates": 1}}
    cohort = SimpleNamespace(shortfall=lambda: {"Rare": count}, manifest=SimpleNamespace(digest=lambda: "rows"))
    image_checks = sanity(lambda uids: (latents(uids).sigmoid() * 255).to(torch.uint8))
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(
            Path(place), configs.parse(tree | {"output_dir": place}), Runtime("cpu", "fp32", 1, 0), Store(Path(place))
        )
        plan, writer = make_images(run, cohort, fusion(), image_checks, "untrained", "benchmark")  # type: ignore[arg-type]
        writer.write_results(run.path("checks.parquet"))
        made = pd.read_parquet(run.path("checks.parquet"), columns=["uid"])["uid"].nunique()
    assert made == count == plan.index.nunique()
    print(json.dumps({"images": count, "peak_mb": peak_rss_mb()}))


def main(few: int, many: int) -> None:
    """Both counts, a table, the ratio."""
    peaks = []
    for count in (few, many):
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(count)], capture_output=True, text=True, check=True
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    ratio = peaks[1]["peak_mb"] / peaks[0]["peak_mb"]
    lines = ["| images | peak RSS, MB |", "|---:|---:|", *(f"| {f['images']} | {f['peak_mb']:.0f} |" for f in peaks)]
    common.table("augment_memory", [*lines, "", f"Ratio {ratio:.3f} (target < 1.2)."])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]))
    else:
        main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (500, 5000)))
