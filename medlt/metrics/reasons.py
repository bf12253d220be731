"""Reasons, in one clause for a table, why a value is missing or shows no evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medlt.metrics.draws import Spread

FEWEST_PATIENTS = 6
"""Positive patients below which the only verdict is "no evidence". As 2 * 0.5 ** 5 > 0.05, a two-sided 5 % test cannot
reject even if every positive moves the same way. The percentile interval would, on three patients, one time in four."""

NEEDS_NEGATIVES = ("AUROC", "balanced accuracy")


def positive_patients(truth: np.ndarray, patients: Sequence[str] | np.ndarray) -> int:
    """Number of patients with a positive in any column of truth [N,C]."""
    return len(np.unique(np.asarray(patients)[(truth == 1).any(1)]))


def missing(metric: str, truth: np.ndarray) -> str:
    """Return why the mean of a metric over the findings of truth [N,C] has no value."""
    reasons = {_missing(metric, column) for column in truth.T}
    return reasons.pop() if len(reasons) == 1 else "no finding has a value"


def _missing(metric: str, truth: np.ndarray) -> str:
    """Return the reason for one finding [N]."""
    if np.isnan(truth).all():
        return "no known test label"
    if not (truth == 1).any():
        return "no positive test image"
    if metric in NEEDS_NEGATIVES and not (truth == 0).any():
        return "no negative test image"
    return "no validation positive to choose a threshold by"


def no_interval(seen: Spread) -> str:
    """Return why there is no interval; "" if there is one."""
    if seen.unbounded:
        return "too few patients or seeds for an interval: it would hold every possible value"
    return "most draws hold no positive: no interval" if np.isnan(seen.low) else ""


def doubt(seen: Spread, patients: int) -> str:
    """Return why an interval of this many positive patients is missing or shows no evidence; "" if it may show some."""
    if patients < FEWEST_PATIENTS and not np.isnan(seen.se):
        return f"fewer than {FEWEST_PATIENTS} positive patients: no evidence"
    return no_interval(seen)
