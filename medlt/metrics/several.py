"""Bootstrap p values of one comparison, and their correction for several.

One comparison: twice the share of draws on the other side of 0, with one draw added so that p is never 0 (Davison &
Hinkley, Bootstrap Methods and their Application, 1997, ch. 4). Up to one draw, p is below 0.05 if and only if the 95 %
percentile interval excludes 0. With D draws it is at least 2 / (D + 1).

Several comparisons: Holm's step-down (Scandinavian Journal of Statistics 6, 1979) over m tests, p_(1) <= ... <= p_(m):

    adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j))

The probability that any true null hypothesis falls below 0.05 is then at most 0.05, however the tests depend on each
other. The correction covers the findings of one metric and one pair of arms. Macro and group means are separate
questions and are not corrected.
"""

from __future__ import annotations

import numpy as np


def two_sided(drawn: np.ndarray) -> float:
    """Return the p value of "the difference is 0" from its draws [D], in [2 / (D + 1), 1]; NaN without a draw."""
    if not len(drawn):
        return float("nan")
    fewer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (1 + fewer) / (len(drawn) + 1)))


def holm(p: np.ndarray) -> np.ndarray:
    """Return the adjusted p values [M] of p [M]. NaN means no test: it stays NaN and is not counted."""
    p = np.asarray(p, np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted
