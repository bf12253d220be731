"""Shares with their intervals, and the area under the ROC curve with patients resampled.

The audit counts detected copies, identified members and linked pairs. A count k of n has the Wilson interval if shares
of several conditions are compared, and the exact interval of Clopper and Pearson if a bound must hold for any n.
Reference: Brown, Cai & DasGupta, Interval Estimation for a Binomial Proportion (Statistical Science 16, 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from medlt.metrics.draws import owners, resampled
from medlt.metrics.ranking import Ranking


class Share(NamedTuple):
    """A share in [0,1] with its interval; NaN without data."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(count: int, of: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson") -> Share:
    """Return the share `count` / `of` with its two-sided interval at `level`."""
    if not of:
        return Share(np.nan, np.nan, np.nan)
    ends = stats.binomtest(int(count), int(of)).proportion_ci(level, method)
    return Share(count / of, float(ends.low), float(ends.high))


def area(
    truth: np.ndarray, score: np.ndarray, owner: Sequence[str] | np.ndarray, rng: np.random.Generator,
    n_bootstrap: int = 1000, level: float = 0.95,
) -> Share:  # fmt: skip
    """Return the AUROC of `score` [N] for `truth` [N] in {0,1}, with its percentile interval.

    The owners (patients) are resampled `n_bootstrap` times. The result is NaN if a class is empty.
    """
    of = owners([str(one) for one in owner])
    count = int(of.max(initial=-1)) + 1
    ranked = Ranking.of(np.asarray(truth, np.float64), score, of)
    point = float(ranked.metrics(np.ones((1, count)))[1, 0])
    drawn = ranked.metrics(resampled(count, n_bootstrap, rng))[1]
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(point) or not len(drawn):
        return Share(point, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Share(point, float(low), float(high))


def auroc_difference(
    truth: np.ndarray, one: np.ndarray, other: np.ndarray, rng: np.random.Generator, n_bootstrap: int = 1000,
    level: float = 0.95,
) -> Share:  # fmt: skip
    """Return the AUROC of `one` minus that of `other`, scores [N] of `truth` [N], with the same resamples for both."""
    count = len(truth)
    weights = np.concatenate([np.ones((1, count), dtype=np.int64), resampled(count, n_bootstrap, rng)])
    same, whose = np.asarray(truth, np.float64), np.arange(count)
    areas = [Ranking.of(same, score, whose).metrics(weights)[1] for score in (one, other)]
    gaps = areas[0] - areas[1]
    drawn = gaps[1:][~np.isnan(gaps[1:])]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
    return Share(float(gaps[0]), float(low), float(high))


def by_patient(scores: np.ndarray, patients: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean score of each patient [P], number of the patient of each row [N]), without names of patients."""
    of = owners([str(one) for one in patients])
    sums = np.bincount(of, weights=np.asarray(scores, np.float64))
    return np.asarray(sums / np.bincount(of)), of
