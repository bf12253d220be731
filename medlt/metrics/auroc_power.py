"""What test images could show before anything is trained: the smallest visible gain of each finding.

The standard error of an AUROC theta with n1 positives and n0 negatives (Hanley and McNeil, Radiology 143, 1982):

    se^2 = (theta (1 - theta) + (n1 - 1)(Q1 - theta^2) + (n0 - 1)(Q2 - theta^2)) / (n1 n0)
    Q1 = theta / (2 - theta),   Q2 = 2 theta^2 / (1 + theta)

Two classifiers that score the same images differ with se^2 = 2 (1 - r) se^2 where r is the correlation of their AUROCs
(Radiology 148, 1983). The smallest gain is `medlt.metrics.power.smallest_gain` of that. It is a guess before the
experiment: the verdict measures its own interval over patients and seeds.
"""

from __future__ import annotations

import math

import pandas as pd

from medlt.metrics.power import smallest_gain

AUROC = 0.8
"""Of a classifier of rare findings; 0.9 would make the smallest gain about a quarter smaller."""
LARGEST = 0.5
"""Gain in AUROC that a classifier can have: from chance to a perfect order."""
CORRELATION = 0.5
"""Between two trainings on the same real images."""


def auroc_standard_error(positives: int, negatives: int, auroc: float = AUROC) -> float:
    """Return the standard error of an AUROC; NaN without positives or negatives."""
    if min(positives, negatives) < 1:
        return math.nan
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (positives - 1) * (q1 - auroc**2) + (negatives - 1) * (q2 - auroc**2)
    return math.sqrt(spread / (positives * negatives))


def smallest_visible_gains(counts: pd.DataFrame) -> pd.Series:
    """Return the smallest visible gain in AUROC of each finding from test counts (columns positive, negative).

    NaN: the test images can show none, as even a gain of LARGEST would be below what they show.
    """
    factor = math.sqrt(2 * (1 - CORRELATION))
    pairs = zip(counts["positive"], counts["negative"], strict=True)
    gains = [smallest_gain(factor * auroc_standard_error(int(n1), int(n0))) for n1, n0 in pairs]
    return pd.Series(gains, counts.index, name="smallest_gain").where(lambda gain: gain <= LARGEST)
