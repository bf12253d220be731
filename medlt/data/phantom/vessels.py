"""Branching vessels from the hila outwards: four generations, each narrower than the previous one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medlt.data.phantom.anatomy import Chest
from medlt.data.phantom.grid import Array, Grid

Curves = NDArray[np.float64]
"""[n, points, 2] in cm."""

_DIAMETERS = (0.58, 0.42, 0.29, 0.19)
_TURNS = np.linspace(0, 1, 6)


def _grow(start: Curves, angle: NDArray[np.float64], length: NDArray[np.float64], bend: NDArray[np.float64]) -> Curves:
    """Return gently bent curves [n,6,2] from `start` [n,2]; `angle` from the lateral direction, + downwards."""
    heading = angle[:, None] + bend[:, None] * _TURNS
    step = length[:, None] * _TURNS
    return np.stack(
        [start[:, :1] + step * np.cos(heading), start[:, 1:] + step * np.sin(heading)],
        axis=-1,
    )


def tree(rng: np.random.Generator, reach: float, stems: int, generations: int) -> list[Curves]:
    """Draw generations of curves from the origin, lateral along +x, in a fan of about `reach` cm."""
    angle = np.linspace(-1.45, 1.4, stems) + 0.1 * rng.standard_normal(stems)
    length = reach * rng.uniform(0.3, 0.45, stems)
    start = np.stack([0.3 * np.cos(angle), 1.6 * np.sin(angle)], axis=1)
    grown = []
    for generation in range(generations):
        curves = _grow(start, angle, length, 0.25 * rng.standard_normal(len(angle)))
        grown.append(curves)
        spread = rng.uniform(0.18, 0.5, 2 * len(angle)) * np.tile([-1.0, 1.0], len(angle))
        last = curves[:, -1] - curves[:, -2]
        angle = np.repeat(np.arctan2(last[:, 1], last[:, 0]), 2) + spread
        start = np.repeat(curves[:, -1], 2, axis=0)
        length = np.repeat(length, 2) * rng.uniform(0.55, 0.95, len(angle)) * (0.92 if generation else 0.8)
    return grown


def vessels(chest: Chest, grid: Grid, rng: np.random.Generator) -> Array:
    """Return the path length of vessels and hila, cm. The projection ignores parts outside the lung."""
    reach = chest.width - chest.mediastinum
    trees = [(side, tree(rng, reach, 8, len(_DIAMETERS))) for side in (-1, 1)]
    path = np.zeros((grid.size, grid.size), np.float32)
    for generation, diameter in enumerate(_DIAMETERS):
        curves = [curve for side, grown in trees for curve in grown[generation] * [side, 1] + chest.hilum(side)]
        path += 2.5 * diameter * grid.stroke(curves, diameter)
    for side in (-1, 1):
        x, y = chest.hilum(side)
        distance = ((grid.x - x) / 1.1) ** 2 + ((grid.y - y) / 2.0) ** 2
        path += 2.2 * np.exp(-distance * 1.2)
    return grid.blur(path, 0.07)
