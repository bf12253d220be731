"""Shares with their intervals, and the area under the ROC curve with patients resampled.

The audit counts: copies found, members guessed, pairs linked. A count k of n has the Wilson interval where the shares
of several conditions are compared, and the exact one of Clopper and Pearson where a bound must hold for any n.
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
    """A share in [0,1] with the ends of its interval; NaN of nothing."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(count: int, of: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson") -> Share:
    """Return `count` of `of`, with its two-sided interval at `level`."""
    if not of:
        return Share(np.nan, np.nan, np.nan)
    found = stats.binomtest(int(count), int(of)).proportion_ci(level, method)
    return Share(count / of, float(found.low), float(found.high))


def area(
    truth: np.ndarray, score: np.ndarray, owner: Sequence[str] | np.ndarray, seed: np.random.Generator,
    draws: int = 1000, level: float = 0.95,
) -> Share:  # fmt: skip
    """Return AUROC of `score` [N] for `truth` [N] in {0,1}; percentiles over `draws` resamples of the owners
    (patients).

    NaN where a class is empty. Chance comes from `seed`, a numpy generator.
    """
    of = owners([str(one) for one in owner])
    count = int(of.max(initial=-1)) + 1
    ranked = Ranking.of(np.asarray(truth, np.float64), score, of)
    point = float(ranked.metrics(np.ones((1, count)))[1, 0])
    drawn = ranked.metrics(resampled(count, draws, seed))[1]
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(point) or not len(drawn):
        return Share(point, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Share(point, float(low), float(high))


def auroc_difference(
    truth: np.ndarray, one: np.ndarray, other: np.ndarray, seed: np.random.Generator, draws: int = 1000,
    level: float = 0.95,
) -> Share:  # fmt: skip
    """Return AUROC of `one` less that of `other`, both [N] scores of `truth` [N]; both see the same resamples of rows."""
    count = len(truth)
    weights = np.concatenate([np.ones((1, count), dtype=np.int64), resampled(count, draws, seed)])
    same, whose = np.asarray(truth, np.float64), np.arange(count)
    areas = [Ranking.of(same, score, whose).metrics(weights)[1] for score in (one, other)]
    found = areas[0] - areas[1]
    drawn = found[1:][~np.isnan(found[1:])]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
    return Share(float(found[0]), float(low), float(high))


def by_patient(scores: np.ndarray, patients: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean score of each patient [P], number of each row's patient [N]); the patients' names are not kept."""
    of = owners([str(one) for one in patients])
    sums = np.bincount(of, weights=np.asarray(scores, np.float64))
    return np.asarray(sums / np.bincount(of)), of
