"""Feature vectors as the sample-level metrics take them: checked, scaled, and their distances a piece at a time.

Notation: real [N,D] and synthetic [M,D] are rows of the same extractor; all is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from medlt.types import InputError

HELD = 1 << 21
"""Distances in memory at once: 16 MB of float64."""

SAME = 1e-12
"""Squared distance, over the squared length of the longest row, below which two rows are one: so far rounding errs."""


def rows(x: ArrayLike, least: int, name: str, why: str) -> np.ndarray:
    """Return `x` as float64 [N,D]. Raises InputError unless it is a finite table of at least `least` rows."""
    found = np.asarray(x, np.float64)
    if found.ndim != 2 or not found.shape[1]:
        raise InputError(f"{name} features have shape {found.shape}; give a table [rows, features]")
    if len(found) < least:
        raise InputError(f"{len(found)} {name} rows; {why} needs at least {least}")
    if not np.isfinite(found).all():
        raise InputError(f"{name} features hold values that are not finite; leave those rows out")
    return found


def pair(
    real: ArrayLike, synthetic: ArrayLike, why: str, least_real: int, least_synthetic: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as in `rows`. Raises InputError too where their widths differ."""
    first, second = rows(real, least_real, "real", why), rows(synthetic, least_synthetic, "synthetic", why)
    if first.shape[1] != second.shape[1]:
        raise InputError(f"real features are {first.shape[1]} wide, synthetic {second.shape[1]}; use one extractor")
    return first, second


def scaled(real: ArrayLike, *others: ArrayLike) -> tuple[np.ndarray, ...]:
    """Return `real` and `others`, less the mean of `real` and over its sd, by feature; a constant one keeps its unit."""
    reference = rows(real, 2, "real", "scaling")
    mean, sd = reference.mean(0), reference.std(0)
    sd = np.where(sd > 1e-9 * np.abs(mean), sd, 1.0)
    return tuple((np.asarray(x, np.float64) - mean) / sd for x in (reference, *others))


def pieces(n: int, m: int) -> Iterator[slice]:
    """Return range(n) cut so that each piece times m is at most HELD numbers."""
    step = max(1, HELD // max(m, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Return squared Euclidean distances [n,M] of `a`'s rows, some at a time, to all of `b`; equal rows are at exactly
    0.
    """
    own, other = (a * a).sum(1), (b * b).sum(1)
    none = SAME * max(own.max(initial=0.0), other.max(initial=0.0))
    for part in pieces(len(a), len(b)):
        found = a[part] @ b.T
        found *= -2
        found += own[part, None]
        found += other
        found[found <= none] = 0.0
        yield part, found


def nearest_squared(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Return squared distances [N,k] of each row of `a` to its k nearest rows of `b`, nearest first."""
    found = np.empty((len(a), k))
    for part, squared in squared_distances(a, b):
        squared.partition(k - 1, axis=1)
        found[part] = np.sort(squared[:, :k], axis=1)
    return found


def squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distance [N] of each row to its k-th neighbour, itself not counted; k < N."""
    return np.asarray(nearest_squared(x, x, k + 1)[:, k])
