"""Agreement between readers, and shares with exact intervals.

| measure | definition |
|---|---|
| kappa | (p_o - p_e) / (1 - p_e): observed agreement p_o, agreement by chance p_e (Cohen 1960) |
| interval | beta quantiles B(a/2; k, n-k+1) and B(1-a/2; k+1, n-k) of k in n (Clopper and Pearson 1934) |

Two readings of one image are not independent. A share over several readers therefore has the interval of n distinct
images, k = share x n: it is too wide if the readings are independent, and never too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

LEVEL = 0.95


@dataclass(frozen=True)
class ExactShare:
    """`value` of `count` in `of` readings, in [0,1], with its exact interval; NaN without a reading."""

    count: int
    of: int
    value: float
    low: float
    high: float


def exact_interval(count: float, of: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson for `count` in `of`, in [0,1]; NaN for none. `count` may be broken."""
    if not of:
        return np.nan, np.nan
    tail = (1 - level) / 2
    low = float(betaincinv(count, of - count + 1, tail)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, of - count, 1 - tail)) if count < of else 1.0
    return low, high


def exact_share(right: Sequence[bool], images: Sequence[str]) -> ExactShare:
    """Return the share of True among readings; images: the image of each reading, whose distinct number sets the
    interval.
    """
    count, of, distinct = int(sum(right)), len(right), len(set(images))
    value = count / of if of else np.nan
    low, high = exact_interval(value * distinct, distinct) if of else (np.nan, np.nan)
    return ExactShare(count, of, value, low, high)


def kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Return Cohen's kappa of two readers' answers to the same images; NaN if both give one and the same answer."""
    from sklearn.metrics import cohen_kappa_score

    if len({*first, *second}) < 2:
        return np.nan
    return float(cohen_kappa_score(list(first), list(second)))
