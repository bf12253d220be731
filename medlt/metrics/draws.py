"""Patients drawn with replacement, and what the draws say of one quantity.

A quantity is measured once with each of S seeds and, in every draw, with each again. Training is a second source of
noise: other seeds would give another mean. Resampling patients already holds the part of it that differs from image to
image; what is left is how much whole runs differ,

    v = max(0, var_s(d_s) - (sum_s var*(d_s - mean d)) / (S - 1)),

the variance between seeds of the quantity d_s less what the draws (*) explain of it. Every draw is moved by
sqrt(v / S) times a Student t variate of S - 1 degrees of freedom. Simulated 95 % intervals with S = 3 cover 93-96 %
from no such noise to nothing but it; patients alone fall to 13 %, resampling seeds as well swings from 82 to 99.5 %.

Intervals are percentiles. BCa is left out: its acceleration needs every patient left out once, more work than the draws
themselves, and its theory has no place for v. What it would correct first, that a metric of a resample is not the
sample's on average (the AP of few positives and the calibration error are larger), cancels between two arms; where it
does not, for one arm, one part of the images, or the calibration error, draws are centred on the value.
Reference: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import stdtrit

from medlt.metrics.power import degrees
from medlt.metrics.several import two_sided


@dataclass(frozen=True)
class Spread:
    """Interval [low, high], standard error, its degrees of freedom, two-sided p of 0; all NaN where not measurable."""

    low: float = np.nan
    high: float = np.nan
    se: float = np.nan
    df: float = np.nan
    p: float = np.nan

    def numbers(self) -> dict[str, float]:
        """Return the fields by name, as floats."""
        return {name: float(value) for name, value in asdict(self).items()}


def owners(patients: Sequence[str]) -> np.ndarray:
    """Return [N]: the number of each row's patient, 0..P-1 in the order of their names."""
    owner: np.ndarray = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    return owner


def resampled(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return [draws, count] int64: how often each of `count` patients is in each resample of them."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)


def patient_weights(patients: Sequence[str], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return [draws, N]: how often each row is in each resample of the patients."""
    owner = owners(patients)
    return resampled(int(owner.max()) + 1, draws, rng)[:, owner]


def run_variance(point: np.ndarray, drawn: np.ndarray) -> float:
    """Return v of the module's docstring, from the quantity of each seed, point [S], and resampled [D,S]; 0 for one
    seed.
    """
    seeds = len(point)
    if seeds == 1:
        return 0.0
    within = (drawn - drawn.mean(1, keepdims=True)).var(0).sum() / (seeds - 1)
    return max(0.0, float(point.var(ddof=1) - within))


def run_noise(seeds: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return [draws]: quantiles of Student t (S - 1 degrees of freedom) over sqrt(S), shuffled; 0 for one seed."""
    if seeds == 1:
        return np.zeros(draws)
    quantiles: np.ndarray = stdtrit(seeds - 1, (np.arange(draws) + 0.5) / draws)
    rng.shuffle(quantiles)
    quantiles /= np.sqrt(seeds)
    return quantiles


def spread(point: np.ndarray, drawn: np.ndarray, noise: np.ndarray, level: float, centred: bool = False) -> Spread:
    """Return what the draws say of a quantity: of each seed, point [S], resampled [D,S] (NaN: not defined there), t
    [D].

    Nothing where half of the draws or more leave it undefined. centred: see the module.
    """
    usable = ~np.isnan(drawn).any(1)
    if 2 * usable.sum() <= len(drawn) or np.isnan(point).any():
        return Spread()
    held = drawn[usable]
    middle, runs = held.mean(1), run_variance(point, held)
    if centred:
        middle = middle - middle.mean() + point.mean()
    moved = middle + np.sqrt(runs) * noise[usable]
    low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
    patients, seeds = float(middle.var()), runs / len(point)
    return Spread(low, high, np.sqrt(patients + seeds), degrees(patients, seeds, len(point)), two_sided(moved))
