"""Truth on synthetic radiographs: which labels of synthetic images are wrong, what the images add, what they cost.

    python benchmarks/phantom_truth.py runs/phantom_verdict_edit runs/phantom_verdict_fusion

The oracle is a classifier of the drawings. It is trained on a fresh cohort, many times as large as that of the runs,
in which every finding is frequent; it shares no image, patient or seed with them. Its rates are measured on another
fresh cohort. From the share a of images that it accepts follows the share p that shows the finding (Rogan & Gladen,
Am J Epidemiol 1978): p = (a - FPR) / (TPR - FPR). Coverage is the share of fresh positives with a synthetic image
nearer than their fifth neighbour among fresh positives, in the oracle's features. For comparison, the table has the
coverage of the real positives that the images were made from, which is what duplicates can cover.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from common import table

from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier, fit_classifier
from medlt.data import phantom
from medlt.data.layouts import from_csv
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache
from medlt.metrics.decisions import thresholds
from medlt.metrics.features import nearest_squared, squared_radii
from medlt.metrics.ranking import per_finding
from medlt.store import Store
from medlt.training.runtime import Runtime

HOME, SIZE, FINDINGS = Path("runs/phantom_oracle"), 64, (*phantom.FINDINGS, "No_Finding")
STORE = Store(HOME / "store")
PIXELS = PixelCache(STORE, 2)
FRESH = {"oracle": (2400, 9001), "rates": (1200, 9002)}
COLUMNS = ("source", "finding", "images", "accepted", "TPR", "FPR", "shows it", "coverage", "coverage of parents")


def _cohort(name: str) -> Manifest:
    patients, seed = FRESH[name]
    table_file = phantom.write_phantom(HOME / name, patients=patients, seed=seed, size=128, imbalance=2.0)
    return from_csv(table=table_file, findings=FINDINGS)


def _set(part: Manifest) -> TrainingSet:
    pixels = PIXELS.images(part, SIZE)
    return TrainingSet(pixels, part.labels(), np.ones(len(part.rows), np.float32), tuple(part.rows.index))


def _oracle() -> Classifier:
    cohort = _cohort("oracle")
    train, held = (cohort.where(cohort.rows["split"].isin(splits)) for splits in (("train", "test"), ("val",)))
    options = {"steps": 2500, "batch_size": 32, "patience": 100, "evaluate_every": 250}
    return fit_classifier(_set(train), _set(held), runtime=Runtime("cpu", "fp32", 1, 1), store=STORE, **options)


def _coverage(real: np.ndarray, others: np.ndarray, k: int = 5) -> float:
    """Share of `real` that has one of `others` nearer than its own k-th neighbour, however few there are."""
    return float((nearest_squared(real, others, 1)[:, 0] <= squared_radii(real, k)).mean())


def _rows(run: Path, oracle: Classifier, fresh: TrainingSet) -> list[dict[str, object]]:
    """One line a finding of a run's kept images."""
    whole = Manifest.read(run / "manifest.parquet")
    made = whole.where(whole.rows["synthetic"])
    pixels, own = _set(made), whole.where(~whole.rows["synthetic"] & (whole.rows["split"] == "train"))
    scores, predicted = oracle.predict(pixels.images).numpy(), oracle.predict(fresh.images).numpy()
    limits, features = thresholds(fresh.labels, predicted), oracle.features(fresh.images).numpy()
    seen, rows = oracle.features(pixels.images).numpy(), []
    for name, part in made.rows.groupby("finding"):
        k = FINDINGS.index(str(name))
        here, truth = made.rows.index.isin(part.index), fresh.labels[:, k] == 1
        tpr, fpr = (float((predicted[chosen, k] >= limits[k]).mean()) for chosen in (truth, ~truth))
        accepted = float((scores[here, k] >= limits[k]).mean())
        parents = oracle.features(PIXELS.images(own, SIZE, own.rows.index[own.rows[name] == 1])).numpy()
        covered = [_coverage(features[truth], other) for other in (seen[here], parents)]
        shows = (accepted - fpr) / (tpr - fpr)
        rows.append(
            dict(zip(COLUMNS, (run.name, name, int(here.sum()), accepted, tpr, fpr, shows, *covered), strict=True))
        )
    return rows


def _cells(row: dict[str, object]) -> str:
    return "| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()) + " |"


def main(runs: list[Path]) -> None:
    """The oracle's AUROC, a table of all runs, and what each cost."""
    torch.set_num_threads(1)
    oracle, fresh = _oracle(), _set(_cohort("rates"))
    able = per_finding(fresh.labels, oracle.predict(fresh.images).numpy(), FINDINGS)
    abilities = ", ".join(f"{name} {value:.3f}" for name, value in able["AUROC"].items())
    lines = [f"The oracle on {len(fresh)} fresh images, AUROC: {abilities}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += [_cells(row) for run in runs for row in _rows(run, oracle, fresh)]
    for run in runs:
        record = json.loads((run / "run.json").read_text())
        kept, seconds = record["counts"]["kept"], record["seconds"]["synthesis"]
        cost = f"{seconds / max(kept, 1):.2f} s a kept image"
        lines += ["", f"{run.name}: {kept} of {record['counts']['planned']} candidates kept, {cost}."]
    table("phantom_truth", lines)


if __name__ == "__main__":
    main([Path(given) for given in sys.argv[1:]])
