"""Precision, recall, density and coverage from the balls around real and synthetic samples.

| metric | share or count | range |
|---|---|---|
| precision | synthetic samples inside the ball of some real one | 0 .. 1 |
| recall | real samples inside the ball of some synthetic one | 0 .. 1 |
| density | real balls a synthetic sample lies in, over k | 0 .., 1 for equal distributions |
| coverage | real balls that hold some synthetic sample | 0 .. 1 |

The ball of a sample reaches to its k-th neighbour of the same set. Kynkaanniemi et al. (arXiv 1904.06991, precision and
recall) include the surface and use k = 3; Naeem et al. (arXiv 2002.09797, density and coverage; package `prdc`) exclude
it and use k = 5. Distances are Euclidean: scale the features first (`medlt.metrics.features.scaled`).

Equal distributions do not reach 1: of N real and M synthetic samples, coverage is expected to be
1 - (N-1)...(N-k) / (M+N-1)...(M+N-k) (Naeem et al., lemma 2), and precision and recall fall with the dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from medlt.metrics.features import pair, squared_distances, squared_radii
from medlt.types import InputError

NAMES = ("precision", "recall", "density", "coverage")


def prdc(real: ArrayLike, synthetic: ArrayLike, k: int = 5, closed: bool = False) -> dict[str, float]:
    """Return the four metrics of real [N,D] and synthetic [M,D]; `closed` includes the surface of each ball.

    Raises InputError for fewer than k + 1 rows of either, widths that differ, or values that are not finite.
    """
    if k < 1:
        raise InputError(f"k = {k} neighbours; give at least 1")
    real, synthetic = pair(real, synthetic, f"a ball of {k} neighbours", k + 1, k + 1)
    own, other = squared_radii(real, k), squared_radii(synthetic, k)
    within = np.less_equal if closed else np.less
    balls = np.zeros(len(synthetic))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for part, squared in squared_distances(real, synthetic):
        balls += within(squared, own[part, None]).sum(0)
        recalled[part] = within(squared, other).any(1)
        covered[part] = within(squared.min(1), own[part])
    values = ((balls > 0).mean(), recalled.mean(), balls.mean() / k, covered.mean())
    return dict(zip(NAMES, map(float, values), strict=True))
