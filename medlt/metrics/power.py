"""What a test set could have shown: the smallest gain found four times in five, and the patients a given gain needs.

    smallest gain = reach(df) * se,     reach(inf) = z_{1-a/2} + z_{power} = 2.80 at a = 0.05 and 80 % power

of a two-sided test at level a, where `se` is the standard error of the difference: V of the patients drawn and R of the
seeds that were run, se^2 = V + R. With few seeds reach is the noncentrality at which Student's t passes its own limit
with that chance, 5.65 for df = 2. The degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946), patients
many and seeds S few:

    df = (V + R)^2 / (R^2 / (S - 1)),     so infinite where runs do not differ.

More patients shrink V as 1 / patients; only more seeds shrink R.
"""

from __future__ import annotations

import numpy as np
from scipy.special import nctdtrinc, stdtrit

MANY = 1e6  # degrees of freedom that are a normal distribution's


def degrees(patients: float, runs: float, seeds: int) -> float:
    """Return df of the module's docstring from the variances V and R; infinite for one seed or runs that do not differ."""
    if seeds == 1 or runs == 0:
        return float("inf")
    return float((patients + runs) ** 2 / (runs**2 / (seeds - 1)))


def reach(df: float = float("inf"), power: float = 0.8, level: float = 0.95) -> float:
    """Return the standard errors that a gain must measure to be found with chance `power`; level is 1 - a."""
    df = min(df, MANY)
    return float(nctdtrinc(df, 1 - power, stdtrit(df, (1 + level) / 2)))


def smallest_gain(se: float, df: float = float("inf"), power: float = 0.8, level: float = 0.95) -> float:
    """Return the least true difference that an interval of `level` leaves 0 below with chance `power`; NaN where `se`
    is.
    """
    return reach(df, power, level) * se if np.isfinite(se) else float("nan")


def patients_needed(
    se: float, patients: int, gain: float, *, runs: float = 0.0, power: float = 0.8, level: float = 0.95
) -> float:
    """Test patients that would show `gain`, from the `se` that `patients` of them gave.

    runs: the part sqrt(R) of `se` that is the seeds'; infinite where it alone hides the gain. Patients are taken to be
    as now: as many images each, as many positives among them. Returns a whole number, NaN where `se` is.
    """
    if not np.isfinite(se):
        return float("nan")
    allowed = (gain / reach(power=power, level=level)) ** 2 - runs**2
    return float(np.ceil(patients * (se**2 - runs**2) / allowed)) if allowed > 0 else float("inf")
