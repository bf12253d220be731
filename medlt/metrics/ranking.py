"""Average precision and area under the ROC curve, ties and unknown labels handled, over bootstrap weights at once.

Both are sums over the G groups of equal scores, highest first. With w the weight of an example (1, or how often a
bootstrap draw holds it), P and F the weights of positives and negatives, tp_g and fp_g those in groups 1..g:

    AP    = sum_g (tp_g - tp_{g-1}) / P * tp_g / (tp_g + fp_g)          (scikit-learn's step-wise definition)
    AUROC = sum_g (fp_g - fp_{g-1}) * (tp_{g-1} + tp_g) / (2 P F)       (trapezia: a tie counts one half)

Notation: N examples, K findings, D draws, S seeds. A truth of NaN means unknown and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medlt.types import InputError

METRICS = ("AP", "AUROC")


@dataclass(frozen=True)
class Ranking:
    """The known examples of one finding, best score first. `order` [n] are rows, `positive` [n] 0/1, `ends` [G]."""

    order: np.ndarray
    positive: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, score: np.ndarray) -> Ranking:
        """Rank `score` [N] of the rows whose `truth` [N] is 0 or 1. Raises InputError on other labels or NaN scores."""
        truth, score = np.asarray(truth, np.float64), np.asarray(score, np.float64)
        if truth.shape != score.shape or truth.ndim != 1:
            raise InputError(f"truth {truth.shape} and score {score.shape} must be vectors of one length")
        known = np.flatnonzero(~np.isnan(truth))
        if not np.isin(truth[known], (0, 1)).all():
            raise InputError("truth holds a label other than 0, 1 or NaN; metrics are taken on real labels only")
        if not np.isfinite(score[known]).all():
            raise InputError("score is not finite; the classifier that gave it has diverged, lower its learning rate")
        order = known[np.argsort(-score[known], kind="stable")]
        ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, len(order) > 0))
        return cls(order, truth[order], ends)

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """(AP, AUROC) under each row of `weights` [D,N]: [2,D], NaN where a draw holds no positive (or no negative)."""
        if not len(self.order):
            return np.full((2, len(weights)), np.nan)
        held = weights[:, self.order].astype(np.float64)
        tp = np.cumsum(held * self.positive, axis=1)[:, self.ends]
        fp = np.cumsum(held, axis=1)[:, self.ends] - tp
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([_average_precision(tp, fp), _auroc(tp, fp)])


def _average_precision(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """[D,G] cumulated positives and negatives -> [D]."""
    precision = tp / np.maximum(tp + fp, np.finfo(float).tiny)
    area: np.ndarray = (np.diff(tp, axis=1, prepend=0) * precision).sum(1) / tp[:, -1]
    return area


def _auroc(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """[D,G] cumulated positives and negatives -> [D]."""
    twice = 2 * tp - np.diff(tp, axis=1, prepend=0)
    area: np.ndarray = (np.diff(fp, axis=1, prepend=0) * twice).sum(1) / (2 * tp[:, -1] * fp[:, -1])
    return area


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """AP of `score` [N] for `truth` [N] in {0,1,NaN}; NaN without a positive."""
    return float(Ranking.of(truth, score).metrics(np.ones((1, len(truth))))[0, 0])


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """AUROC of `score` [N] for `truth` [N] in {0,1,NaN}; NaN without a positive or without a negative."""
    return float(Ranking.of(truth, score).metrics(np.ones((1, len(truth))))[1, 0])


def per_finding(truth: np.ndarray, scores: np.ndarray, findings: Sequence[str]) -> pd.DataFrame:
    """One row a finding: positive, negative, unknown, AP, AUROC.

    truth: [N,K] in {0,1,NaN}; scores: [N,K]. Raises InputError when the shapes do not fit `findings`.
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
    """Mean over findings, those without a value (NaN) left out; NaN when none has one."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def macro_average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean AP over the findings that have a positive; truth, scores [N,K]. NaN when none has."""
    names = [str(k) for k in range(np.asarray(truth).shape[1])]
    return float(macro(per_finding(truth, scores, names)["AP"].to_numpy()))
