"""The cost of the paired bootstrap of two models: medlt beside a plain loop over scikit-learn.

    python benchmarks/bootstrap.py FOLDER [--n-bootstrap 2000] [--loop 3] [--seeds 1]

FOLDER holds truth.npz (test_labels [N,K], test_patient [N]) and MODEL_seed0_logits_f16.npz (test_logits [N,K]): here
those of INQUIRELAB/casp-chestmnist, 25,596 images x 14 findings of 2,797 patients. Both draw patients and compute AP
and AUROC of every finding for both models; medlt also computes sensitivity, balanced accuracy, F1 and ECE. The loop
is timed on a few draws, from which its total is computed. Stored scores are often tied; "no ties" adds noise below
their precision. `--seeds` repeats each model, like arms of that many trainings.

Target: under 60 s for 2,000 draws on 2 cores, under 1 GB.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from common import table
from sklearn.metrics import average_precision_score, roc_auc_score

from medlt.metrics.bootstrap import difference
from medlt.metrics.decisions import decided, thresholds
from medlt.metrics.draws import patient_weights

MODELS = ("searched_nonrec", "densenet121")


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth [N,K], logits of both models [2,N,K], patients [N]."""
    with np.load(folder / "truth.npz", allow_pickle=False) as held:
        truth, patients = held["test_labels"].astype(float), held["test_patient"]
    each = []
    for name in MODELS:
        with np.load(folder / f"{name}_seed0_logits_f16.npz", allow_pickle=False) as held:
            each.append(held["test_logits"].astype(float))
    return truth, np.stack(each), patients


def loop(truth: np.ndarray, scores: np.ndarray, patients: np.ndarray, n_bootstrap: int) -> tuple[float, np.ndarray]:
    """(seconds a draw, differences [n_bootstrap,2,K]) of scikit-learn on the rows of each draw written out."""
    weights = patient_weights(patients, n_bootstrap, np.random.default_rng(0))
    began, values = time.perf_counter(), np.zeros((n_bootstrap, 2, 2, truth.shape[1]))
    for d, arm, k in np.ndindex(n_bootstrap, 2, truth.shape[1]):
        rows = np.repeat(np.arange(len(truth)), weights[d])
        drawn = truth[rows, k], scores[arm][rows, k]
        values[d, arm, :, k] = average_precision_score(*drawn), roc_auc_score(*drawn)
    return (time.perf_counter() - began) / n_bootstrap, values[:, 0] - values[:, 1]


def ours(
    truth: np.ndarray, scores: np.ndarray, patients: np.ndarray, n_bootstrap: int, seeds: int, whole: bool
) -> tuple[float, float]:
    """(seconds, macro AP difference) of `difference`; whole: all six metrics, else AP and AUROC alone."""
    arms = [np.repeat((1 / (1 + np.exp(-one)) if whole else one)[None], seeds, axis=0) for one in scores]
    cuts = [np.repeat(thresholds(truth, arm[0])[None], seeds, axis=0) for arm in arms]
    decisions = (decided(arms[0], cuts[0]), decided(arms[1], cuts[1])) if whole else None
    names, rng = [str(k) for k in range(truth.shape[1])], np.random.default_rng(0)
    began = time.perf_counter()
    values = difference(truth, arms[0], arms[1], patients, names, n_bootstrap=n_bootstrap, rng=rng, decided=decisions)
    return time.perf_counter() - began, float(values["difference"][0])


def main() -> None:
    """Both ways, tied and not."""
    read_ = argparse.ArgumentParser()
    read_.add_argument("folder", type=Path)
    read_.add_argument("--n-bootstrap", type=int, default=2000)
    read_.add_argument("--loop", type=int, default=3, help="draws of the plain loop that are timed")
    read_.add_argument("--seeds", type=int, default=1)
    args = read_.parse_args()
    truth, logits, patients = read(args.folder)
    free = logits + 1e-6 * np.random.default_rng(0).random(logits.shape)
    each, _ = loop(truth, logits, patients, args.loop)
    plain, lines = each * args.n_bootstrap * args.seeds, []
    for name, scores in (("as stored, many ties", logits), ("no ties", free)):
        for metrics, whole in (("AP, AUROC", False), ("all six", True)):
            seconds, _ = ours(truth, scores, patients, args.n_bootstrap, args.seeds, whole)
            lines.append(f"| {name} | {metrics} | {seconds:.1f} | {plain / seconds:.0f} | <= 60 |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [
        f"{len(truth)} images x {truth.shape[1]} findings of {len(set(patients))} patients, 2 models, {args.seeds} "
        f"seeds, {args.n_bootstrap} draws, one thread of medlt's own. A plain loop over scikit-learn, AP and AUROC, "
        f"takes {each:.2f} s a draw ({args.loop} timed), so {plain / 60:.0f} minutes for all. Peak memory "
        f"{peak:.0f} MB.",
        "",
        "| scores | metrics | seconds | times faster than the loop | target, s |",
        "|---|---|---:|---:|---:|",
        *lines,
    ]
    table("bootstrap", lines)


if __name__ == "__main__":
    main()
