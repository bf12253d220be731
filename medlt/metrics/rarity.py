"""Rarity of a sample among real samples: larger is rarer.

| metric | of one sample | source |
|---|---|---|
| AvgkNN | mean distance to its k nearest real samples | as in minority guidance, arXiv 2301.12334 |
| LOF | density of its real neighbours over its own; about 1 inside | Breunig et al. 2000, scikit-learn's |
| Rarity | radius of the smallest real ball that holds it; NaN outside all of them | Han et al., arXiv 2206.08549 |

The ball of a real sample reaches to its k-th real neighbour, without the surface. The Rarity score of an image outside
every ball is undefined, so its mean is always reported with the share outside. A sample far from all data is rare by
these metrics, too: read them together with precision. Distances are Euclidean: scale the features first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from medlt.metrics.features import nearest_squared, pair, squared_distances, squared_radii
from medlt.types import InputError


def _pair(real: ArrayLike, samples: ArrayLike, k: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both tables as float64 and checked."""
    if k < 1:
        raise InputError(f"k = {k} neighbours; give at least 1")
    return pair(real, samples, f"a neighbourhood of {k}", least)


def avg_knn(real: ArrayLike, samples: ArrayLike, k: int = 5) -> np.ndarray:
    """Return AvgkNN [M] of samples [M,D] against real [N,D]. Raises InputError for N < k."""
    real, samples = _pair(real, samples, k, k)
    return np.asarray(np.sqrt(nearest_squared(samples, real, k)).mean(1))


def lof(real: ArrayLike, samples: ArrayLike, k: int = 20) -> np.ndarray:
    """Return the local outlier factor [M] of samples [M,D] as new to real [N,D]. Raises InputError for N < k + 1."""
    from sklearn.neighbors import LocalOutlierFactor

    real, samples = _pair(real, samples, k, k + 1)
    return np.asarray(-LocalOutlierFactor(n_neighbors=k, novelty=True).fit(real).score_samples(samples))


def rarity(real: ArrayLike, samples: ArrayLike, k: int = 3) -> np.ndarray:
    """Return the rarity score [M] of samples [M,D] among the balls of real [N,D]; NaN outside.

    Raises InputError for N < k + 1.
    """
    real, samples = _pair(real, samples, k, k + 1)
    radius = squared_radii(real, k)
    smallest = np.empty(len(samples))
    for part, squared in squared_distances(samples, real):
        smallest[part] = np.sqrt(np.where(squared < radius, radius, np.inf).min(1))
    return np.where(np.isinf(smallest), np.nan, smallest)


def rarity_summary(real: ArrayLike, samples: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Return (mean Rarity score of the samples inside, share of samples outside); the mean is NaN if none is inside."""
    scores = rarity(real, samples, k)
    inside = ~np.isnan(scores)
    return (float(scores[inside].mean()) if inside.any() else float("nan")), float(1 - inside.mean())
