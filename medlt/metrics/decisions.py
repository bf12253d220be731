"""Decisions from scores: thresholds chosen on validation; sensitivity, balanced accuracy and F1 of the decisions.

A threshold is the validation score that gives the largest F1 when images at or above it are called positive. Of equal
F1 the highest threshold is taken. Thresholds are never chosen on test. Single-label collections need none: `one_of`
decides for the finding with the highest score, and the macro mean of sensitivity is then the balanced accuracy of the
long-tailed radiograph benchmarks (Holste et al. 2022, arXiv 2208.13365).

    sensitivity = TP / (TP + FN)    balanced accuracy = (sensitivity + TN / (TN + FP)) / 2    F1 = 2TP / (2TP + FP + FN)

Without a positive all three are undefined and NaN, where scikit-learn has `zero_division`; so is the balanced accuracy
without a negative. A truth of NaN means unknown and is left out. Shapes as in `ranking`.
"""

from __future__ import annotations

import numpy as np

from medlt.metrics.ranking import ordered
from medlt.types import InputError

DECISIONS = ("sensitivity", "balanced accuracy", "F1")


def tally(owner: np.ndarray, cell: np.ndarray, shape: tuple[int, int], values: np.ndarray | None = None) -> np.ndarray:
    """Return the number of rows, or the sum of their `values` [n], that each owner has in each cell: [owners, cells].

    owner, cell: [n]. A matrix of draws [D,owners] times this gives the sums of all draws.
    """
    size = shape[0] * shape[1]
    return np.bincount(owner * shape[1] + cell, weights=values, minlength=size).reshape(shape).astype(np.float64)


def thresholds(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the threshold of largest F1 for each finding, [K]; NaN for a finding without a positive.

    truth: [N,K] in {0,1,NaN}, of VALIDATION images; scores: [N,K]. Raises InputError for shapes that differ, other
    labels, or scores that are not finite.
    """
    truth, scores = np.asarray(truth, np.float64), np.asarray(scores, np.float64)
    if truth.shape != scores.shape or truth.ndim != 2:
        raise InputError(f"validation truth {truth.shape} and scores {scores.shape} must both be [N,K]")
    return np.array([_threshold(truth[:, k], scores[:, k]) for k in range(truth.shape[1])])


def _threshold(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the threshold of one finding [N], as `thresholds`."""
    order = ordered(truth, score)
    positive, ranked = truth[order], score[order]
    if not positive.any():
        return float("nan")
    ends = np.flatnonzero(np.diff(ranked, append=-np.inf) != 0)  # last of each group of equal scores
    f1 = 2 * np.cumsum(positive)[ends] / (ends + 1 + positive.sum())
    return float(ranked[ends[np.argmax(f1)]])


def decided(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return 1 where scores [...,N,K] reach thresholds [...,K], else 0; NaN where the threshold is."""
    cut = np.asarray(thresholds, np.float64)[..., None, :]
    return np.where(np.isnan(cut), np.nan, (np.asarray(scores) >= cut).astype(np.float64))


def one_of(scores: np.ndarray) -> np.ndarray:
    """Return 1 at the highest of scores [...,N,K] along K, else 0: the decision if each image has one finding.

    Of equal scores the first finding is taken. Raises InputError for scores that are NaN.
    """
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise InputError("a score is NaN; the classifier has diverged: lower its learning rate")
    return np.asarray(np.arange(scores.shape[-1]) == scores.argmax(-1)[..., None], np.float64)


def decision_metrics(
    truth: np.ndarray, decided: np.ndarray, weights: np.ndarray, owner: np.ndarray | None = None
) -> np.ndarray:
    """Return (sensitivity, balanced accuracy, F1) under each draw, [3,D,K].

    truth, decided: [N,K]; weights: [D,O]; owner: [N], the column of `weights` that holds for each row. Without `owner`,
    row i has column i.
    """
    owner = np.arange(len(truth)) if owner is None else owner
    cells = [_cells(truth[:, k], decided[:, k], owner, weights.shape[1]) for k in range(truth.shape[1])]
    counts = (weights @ np.hstack(cells)).reshape(len(weights), -1, 4)  # one product: weights are copied for each
    tn, fn, fp, tp = np.moveaxis(counts, 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, f1 = tp / (tp + fn), np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
        return np.stack([sensitivity, (sensitivity + tn / (tn + fp)) / 2, f1])


def _cells(truth: np.ndarray, decided: np.ndarray, owner: np.ndarray, owners: int) -> np.ndarray:
    """Return the TN, FN, FP, TP of each owner for one finding [N], [owners,4]; NaN if a decision is missing."""
    known = ~np.isnan(truth)
    if np.isnan(decided[known]).any():
        return np.full((owners, 4), np.nan)
    return tally(owner[known], (2 * decided[known] + truth[known]).astype(np.int64), (owners, 4))
