"""Average precision and area under the ROC curve, with ties and unknown labels, for all bootstrap draws at once.

Both are sums over the G groups of equal scores, highest first. With w the weight of an example (1, or how often a
bootstrap draw holds it), P and F the weights of positives and negatives, tp_g and fp_g those in groups 1..g:

    AP    = sum_g (tp_g - tp_{g-1}) / P * tp_g / (tp_g + fp_g)          (scikit-learn's step-wise definition)
    AUROC = sum_g (tp_g - tp_{g-1}) * (F - (fp_{g-1} + fp_g) / 2) / (P F)     (a tie counts one half)

A group without a positive adds nothing to either. So only groups with a positive are kept, and the examples between two
of them are counted together. Patients, not images, are drawn. The examples of a patient in one place are one number;
the sums of all draws are a sparse matrix [places, patients] times the draws, exact in whole numbers.

Notation: N examples, K findings, D draws, S seeds, O owners (patients). A truth of NaN means unknown and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from medlt.types import InputError

METRICS = ("AP", "AUROC")

_HELD = 1 << 17  # weights in memory at once, 0.5 MB: they stay in the cache of one core
_EXACT = 1 << 22  # examples in a draw up to which halves are exact in float32


@dataclass(frozen=True)
class Ranking:
    """The known examples of one finding by place in the ranking, best first, and by owner.

    counts: [3G+1,O] for the G groups with a positive: rows 0..G hold the negatives before each and after the last,
    G+1..2G those tied with its positives, 2G+1..3G its positives.
    """

    counts: csr_array
    groups: int

    @classmethod
    def of(cls, truth: np.ndarray, score: np.ndarray, owner: np.ndarray | None = None) -> Ranking:
        """Rank the `score` [N] of the rows whose `truth` [N] is 0 or 1.

        owner: [N] in 0..O-1; without it, row i has owner i. Raises InputError for other labels or scores that are not
        finite.
        """
        truth, score = np.asarray(truth, np.float64), np.asarray(score, np.float64)
        if truth.shape != score.shape or truth.ndim != 1:
            raise InputError(f"truth {truth.shape} and score {score.shape} must be vectors of one length")
        owner = np.arange(len(truth)) if owner is None else owner
        order = ordered(truth, score)
        positive = truth[order] == 1
        group = np.cumsum(np.diff(score[order], prepend=np.inf) != 0) - 1
        holds = np.bincount(group, weights=positive) > 0
        before: np.ndarray = np.cumsum(holds) - holds
        groups = int(holds.sum())
        place = before[group] + np.where(positive, 2 * groups + 1, np.where(holds[group], groups + 1, 0))
        shape = (3 * groups + 1, int(owner.max(initial=-1)) + 1)
        return cls(csr_array((np.ones(len(order), np.float32), (place, owner[order])), shape=shape), groups)

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """Return (AP, AUROC) under each row of `weights` [D,O], whole numbers: [2,D].

        NaN if a draw holds no positive (or no negative). Fastest if weights.T is contiguous.
        """
        values = np.full((2, len(weights)), np.nan)
        if not self.groups:
            return values
        exact = self.counts.sum() * weights.max(initial=0) < _EXACT
        size = self.counts.shape[1]
        step = max(32, _HELD // size)
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            held = self.counts @ np.ascontiguousarray(weights[part, :size].T, np.float32 if exact else np.float64)
            values[:, part] = _areas(*np.split(held, [self.groups + 1, 2 * self.groups + 1]))
        return values


def ordered(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return rows of known truth, best score first.

    Raises InputError for other labels or scores that are not finite.
    """
    known = np.flatnonzero(~np.isnan(truth))
    if not np.isin(truth[known], (0, 1)).all():
        raise InputError("truth holds a label other than 0, 1 or NaN; compute metrics on labels of real images only")
    if not np.isfinite(score[known]).all():
        raise InputError("a score is not finite; the classifier has diverged: lower its learning rate")
    order: np.ndarray = known[np.argsort(-score[known], kind="stable")]
    return order


def _areas(between: np.ndarray, tied: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return (AP, AUROC) [2,D] from the weights [G+1,D], [G,D], [G,D] of the places of one ranking."""
    tp, fp = np.cumsum(positive, 0), np.cumsum(between[:-1] + tied, 0)
    positives, negatives = tp[-1].astype(np.float64), fp[-1].astype(np.float64) + between[-1]
    precision = np.divide(tp, np.maximum(tp + fp, np.finfo(np.float32).tiny), dtype=np.float64)
    fp -= tied / 2
    above = np.einsum("gd,gd->d", positive, fp, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.einsum("gd,gd->d", positive, precision) / positives
        return np.stack([area, 1 - above / (positives * negatives)])


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Return AUROC of `score` [N] for `truth` [N] in {0,1,NaN}; NaN without a positive or without a negative."""
    return float(Ranking.of(truth, score).metrics(np.ones((1, len(truth))))[1, 0])


def per_finding(truth: np.ndarray, scores: np.ndarray, findings: Sequence[str]) -> pd.DataFrame:
    """Return one row for each finding: positive, negative, unknown, AP, AUROC.

    truth: [N,K] in {0,1,NaN}; scores: [N,K]. Raises InputError if the shapes do not fit `findings`.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    if truth.shape != scores.shape or truth.shape[1:] != (len(findings),):
        raise InputError(f"truth {truth.shape} and scores {scores.shape} must both be [N, {len(findings)} findings]")
    one = np.ones((1, len(truth)))
    pairs = [Ranking.of(truth[:, k], scores[:, k]).metrics(one)[:, 0] for k in range(len(findings))]
    counts = {"positive": (truth == 1).sum(0), "negative": (truth == 0).sum(0), "unknown": np.isnan(truth).sum(0)}
    values = dict(zip(METRICS, np.array(pairs).reshape(-1, 2).T, strict=True))
    return pd.DataFrame(counts | values, index=pd.Index(findings, name="finding"))


def macro(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean over findings that have a value (not NaN); NaN if none has one."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def ranked_per_draw(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, owner: np.ndarray | None = None
) -> np.ndarray:
    """Return (AP, AUROC) of every draw, seed and finding, [2,D,S,K].

    truth: [N,K]; scores: [S,N,K]; weights: [D,O]; owner: [N], the column of `weights` that holds for each row. Without
    `owner`, row i has column i.
    """
    pairs = [[Ranking.of(y, p, owner).metrics(weights) for y, p in zip(truth.T, one.T, strict=True)] for one in scores]
    return np.moveaxis(np.array(pairs), (0, 1), (2, 3))


def macro_average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean AP over the findings that have a positive; truth, scores [N,K]. NaN if none has."""
    names = [str(k) for k in range(np.asarray(truth).shape[1])]
    return float(macro(per_finding(truth, scores, names)["AP"].to_numpy()))
