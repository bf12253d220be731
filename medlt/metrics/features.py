"""Feature vectors of the sample-level metrics: check them, scale them, and compute distances block by block.

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
"""Two rows are equal if their squared distance, over the squared length of the longest row, is below this rounding."""


def rows(x: ArrayLike, least: int, name: str, why: str) -> np.ndarray:
    """Return `x` as float64 [N,D]. Raises InputError unless it is a finite table of at least `least` rows."""
    table = np.asarray(x, np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise InputError(f"{name} features have shape {table.shape}; give a table [rows, features]")
    if len(table) < least:
        raise InputError(f"{len(table)} {name} rows; {why} needs at least {least}")
    if not np.isfinite(table).all():
        raise InputError(f"{name} features hold values that are not finite; leave those rows out")
    return table


def pair(
    real: ArrayLike, synthetic: ArrayLike, why: str, least_real: int, least_synthetic: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return both tables as float64, checked by `rows`. Raises InputError if their widths differ, too."""
    first, second = rows(real, least_real, "real", why), rows(synthetic, least_synthetic, "synthetic", why)
    if first.shape[1] != second.shape[1]:
        raise InputError(f"real features are {first.shape[1]} wide, synthetic {second.shape[1]}; use one extractor")
    return first, second


def scaled(real: ArrayLike, *others: ArrayLike) -> tuple[np.ndarray, ...]:
    """Return `real` and `others`, standardised by the mean and sd of `real`; a constant feature is centred only."""
    reference = rows(real, 2, "real", "scaling")
    mean, sd = reference.mean(0), reference.std(0)
    sd = np.where(sd > 1e-9 * np.abs(mean), sd, 1.0)
    return tuple((np.asarray(x, np.float64) - mean) / sd for x in (reference, *others))


def pieces(n: int, m: int) -> Iterator[slice]:
    """Return slices of range(n), so that each times m is at most HELD numbers."""
    step = max(1, HELD // max(m, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield squared Euclidean distances [n,M] from blocks of rows of `a` to all of `b`. Equal rows have exactly 0."""
    own, other = (a * a).sum(1), (b * b).sum(1)
    none = SAME * max(own.max(initial=0.0), other.max(initial=0.0))
    for part in pieces(len(a), len(b)):
        squared = a[part] @ b.T
        squared *= -2
        squared += own[part, None]
        squared += other
        squared[squared <= none] = 0.0
        yield part, squared


def nearest_squared(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Return squared distances [N,k] of each row of `a` to its k nearest rows of `b`, nearest first."""
    closest = np.empty((len(a), k))
    for part, squared in squared_distances(a, b):
        squared.partition(k - 1, axis=1)
        closest[part] = np.sort(squared[:, :k], axis=1)
    return closest


def squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distance [N] of each row to its k-th neighbour, not counting itself; k < N."""
    return np.asarray(nearest_squared(x, x, k + 1)[:, k])
