"""Statistical power of a test set: the smallest gain that is detected with 80 % power.

    smallest gain = reach(df) * se,     reach(inf) = z_{1-a/2} + z_{power} = 2.80 at a = 0.05 and 80 % power

of a two-sided test at level a, where `se` is the standard error of the difference: se^2 = V + R, with V the variance
over drawn patients and R the variance over seeds. With few seeds, reach is the noncentrality at which Student's t
exceeds its critical value with that power, 5.65 for df = 2. The degrees of freedom are Satterthwaite's (Biometrics
Bulletin 2, 1946), with many patients and S seeds:

    df = (V + R)^2 / (R^2 / (S - 1)),     infinite if runs do not differ.

More patients shrink V as 1 / patients, with as large a share of positives; only more seeds shrink R as 1 / S. So one
experiment says what a larger one could show (`smallest_gain_with`), of the same arms trained on the same rows.
"""

from __future__ import annotations

import numpy as np
from scipy.special import nctdtrinc, stdtrit

MANY = 1e6  # from here on, Student's t is a normal distribution


def degrees(patients: float, runs: float, seeds: int) -> float:
    """Return df of the module's docstring from the variances V and R; infinite for one seed or for R = 0."""
    if seeds == 1 or runs == 0:
        return float("inf")
    return float((patients + runs) ** 2 / (runs**2 / (seeds - 1)))


def reach(df: float = float("inf"), power: float = 0.8, level: float = 0.95) -> float:
    """Return how many standard errors a gain must be, to be detected with probability `power`; level is 1 - a."""
    df = min(df, MANY)
    return float(nctdtrinc(df, 1 - power, stdtrit(df, (1 + level) / 2)))


def smallest_gain(se: float, df: float = float("inf"), power: float = 0.8, level: float = 0.95) -> float:
    """Return the smallest true difference whose interval of `level` excludes 0 with probability `power`."""
    return reach(df, power, level) * se if np.isfinite(se) else float("nan")


def smallest_gain_with(
    se: float, df: float, seeds: int, *, times: float, more_seeds: int, power: float = 0.8, level: float = 0.95
) -> float:
    """Return the smallest gain of an experiment with `times` as many test patients and `more_seeds` seeds.

    se, df: of the experiment that was made, with `seeds` seeds. NaN for several seeds if it had one, because it does
    not say how much runs differ.
    """
    if seeds == 1 and more_seeds > 1:
        return float("nan")
    runs = 0.0 if seeds == 1 or np.isinf(df) else se**2 * np.sqrt((seeds - 1) / df)
    patients, own = max(se**2 - runs, 0.0) / times, runs * seeds / more_seeds
    return smallest_gain(float(np.sqrt(patients + own)), degrees(patients, own, more_seeds), power, level)
