"""Did a guide move what it climbs? The same plan rows with and without it, image beside image.

    python benchmarks/paired.py runs/nih14_longtail runs/nih14_unguided

Both runs share `artifacts_dir`. For rows that both runs kept: the guidance classifier's statistics and the verifier's
probability of the row's finding, the distance to the five nearest real train images in a verifier's features, and the
difference of pixels. Printed are mean differences, guided minus unguided, with standard errors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import table
from torch import Tensor

from medlt.classify.train import Classifier
from medlt.classify.uncertainty import STATISTICS
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.metrics.rarity import avg_knn
from medlt.recipes._cohort import filed_cohort
from medlt.recipes._models import train_guidance_classifier, train_verifiers
from medlt.recipes._setup import finished
from medlt.synthesis.guides import target_columns
from medlt.training.runtime import silent

SLOT = ["finding", "slot", "candidate"]


def kept(run: Path) -> Manifest:
    """The synthetic rows of a run."""
    whole = Manifest.read(run / "manifest.parquet")
    return whole.where(whole.rows["synthetic"].fillna(False).astype(bool))


def pairs(one: Manifest, other: Manifest) -> pd.DataFrame:
    """uid_x, uid_y of rows kept by both, and what they were made for."""
    rows = [made.rows[SLOT].reset_index(names="uid") for made in (one, other)]
    return rows[0].merge(rows[1], on=SLOT)


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("guided", type=Path)
    read.add_argument("unguided", type=Path)
    args = read.parse_args()
    run = finished(args.guided, silent)
    cohort = filed_cohort(run)
    verifiers = train_verifiers(run, cohort, None)  # from the store
    both = pairs(*(made := [kept(run) for run in (args.guided, args.unguided)]))
    size = run.config.size
    shown = [images(m, size, list(both[uid])) for m, uid in zip(made, ("uid_x", "uid_y"), strict=True)]
    head = train_guidance_classifier(run, cohort, verifiers)
    column = target_columns(both["finding"], cohort.findings)
    verifier = verifiers.verifiers[0]
    assert isinstance(verifier, Classifier)
    real = verifier.features(cohort.images(cohort.train, verifier.size)).numpy()

    def values(pixels: Tensor) -> dict[str, np.ndarray]:
        at = torch.arange(len(pixels))
        statistics = {
            f"guidance classifier: {name}": head.score(pixels, name)[at, column].numpy() for name in STATISTICS
        }
        seen = verifier.features(pixels).numpy()
        return statistics | {
            "verifier's probability": verifier.predict(pixels)[at, column].numpy(),
            "AvgkNN": avg_knn(real, seen),
        }

    guided, unguided = (values(pixels) for pixels in shown)
    lines = [
        f"{len(both)} rows kept by both runs.",
        "",
        "| value | unguided | difference | standard error |",
        "|---|---:|---:|---:|",
    ]
    for name in guided:
        gap = guided[name] - unguided[name]
        lines.append(
            f"| {name} | {unguided[name].mean():.4f} | {gap.mean():+.4f} | {gap.std(ddof=1) / len(gap) ** 0.5:.4f} |"
        )
    moved = (shown[0].float() - shown[1].float()).abs().mean() / 255
    table(
        f"paired_{args.guided.name}",
        [*lines, "", f"Mean absolute difference of pixels: {float(moved):.4f} of the range."],
    )


if __name__ == "__main__":
    main()
