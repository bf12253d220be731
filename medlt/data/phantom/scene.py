"""Maps of path length (cm) per pixel through a chest without findings.

Lung is the thoracic cage without heart, mediastinum and diaphragm. Below the dome's outline the lung of the posterior
recess continues behind the liver and gets thinner, so that edge is a step in brightness and not the end of the lung.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medlt.data.phantom.anatomy import Chest
from medlt.data.phantom.grid import Array, Grid, smoothstep
from medlt.data.phantom.skeleton import skeleton
from medlt.data.phantom.vessels import vessels


@dataclass
class Scene:
    """Path-length maps, each float32 [H,W] in cm unless noted; findings change them in place."""

    chest: Chest
    grid: Grid
    body: Array
    """Soft tissue, skin to skin, as if the patient held no air."""
    lung: Array
    """Lung, both sides."""
    aeration: Array
    """Share of the lung that still holds air, in [0,1]."""
    vessels: Array
    bone: Array
    solid: Array
    """Soft tissue that displaces lung: nodules, masses, pleura."""
    gas: Array
    """Air that displaces tissue: trachea, stomach, free gas."""
    metal: Array
    """Optical depth of devices (no unit)."""
    heart: NDArray[np.bool_]
    side: NDArray[np.int8]
    """-1 where the patient's right, +1 where the left."""
    ax: Array
    """|x|, cm."""
    wall: Array
    """|x| of the inner chest wall at each pixel's height."""

    @property
    def thorax(self) -> NDArray[np.bool_]:
        """Return the mask inside the rib cage, above and below the costophrenic outline."""
        return np.asarray((self.ax < self.wall) & (self.grid.y > self.chest.apex))

    def on(self, side: int) -> NDArray[np.bool_]:
        """Return the mask of one side of the patient."""
        return np.asarray(self.side == side)


def body(chest: Chest, grid: Grid) -> Array:
    """Return trunk, shoulders and neck as rounded slabs of soft tissue, cm."""
    ax, y = np.abs(grid.x), grid.y
    armpit = chest.apex + 9.5
    half = (
        chest.width
        + chest.wall
        + 9.5 * smoothstep((armpit + 0.5 * np.maximum(ax - 16, 0) - y) / 6.0)
        + 0.06 * np.maximum(y - chest.apex - 16, 0)
    )
    trunk = np.sqrt(np.maximum(1 - (ax / half) ** 2.6, 0))
    shoulder = chest.apex - 4.6 + 0.12 * ax + 0.014 * np.maximum(ax - 6, 0) ** 2
    upper = 0.35 * (y > shoulder) + 0.65 * np.sqrt(np.clip((y - shoulder) / 8.0, 0, 1))
    neck = 11.0 * np.sqrt(np.maximum(1 - (ax / 6.0) ** 2, 0)) * smoothstep((shoulder + 8 - y) / 6)
    return np.asarray(np.sqrt(np.hypot((chest.depth * trunk * upper) ** 2, neck**2)), np.float32)


def heart(chest: Chest, grid: Grid) -> Array:
    """Return the squared elliptical radius of the cardiac shadow: 1 on its border, horizontal extent `heart_width`.

    Two ellipses: the ventricles, long axis down to the patient's left, and the right atrium, upright, to the right.
    """
    half = chest.heart_width / 2
    middle = 0.36 * half + chest.shift + 0.35 * chest.turn
    cos, sin, ratio = math.cos(chest.tilt), math.sin(chest.tilt), 0.7
    a = 0.78 * half / math.sqrt(cos**2 + (ratio * sin) ** 2)
    tall = a * math.sqrt(sin**2 + (ratio * cos) ** 2)
    level = max(chest.domes) + 1.7 - 0.95 * tall
    x, y = grid.x - (middle + 0.22 * half), grid.y - level
    along, across = cos * x + sin * y, cos * y - sin * x
    ventricles = (along / a) ** 2 + (across / (ratio * a)) ** 2
    atrium = ((x + 0.72 * half) / (0.5 * half)) ** 2 + ((y - 0.14 * tall) / (0.8 * tall)) ** 2
    union = ventricles * atrium / np.cbrt(ventricles**3 + atrium**3 + 1e-9)
    return np.asarray(union, np.float32)


def lung(chest: Chest, grid: Grid, wall: Array, side: NDArray[np.int8], radius2: Array) -> Array:
    """Return the path through lung, cm."""
    ax, y = np.abs(grid.x), grid.y
    level = np.clip((y - chest.apex) / (0.45 * chest.height), 0, 1)
    cage = (chest.depth - 5.5) * (0.5 + 0.5 * np.sqrt(level)) * np.sqrt(np.maximum(1 - (ax / wall) ** 3, 0))
    border = chest.inner(y, side) + side * (chest.shift + 0.3 * chest.turn)
    medial = np.sqrt(np.clip((side * grid.x - border) / 1.7, 0, 1))
    below = y - chest.diaphragm(ax, side)
    recess = 0.42 * (1 - np.sqrt(1 - (1 - np.clip(below / 4.5, 0, 1)) ** 2))
    base = recess + (1 - recess) * np.clip(0.5 - below / (1.5 * grid.spacing), 0, 1)
    beating = 2 * 0.43 * chest.heart_width * np.sqrt(np.maximum(1 - radius2, 0))
    return np.asarray(np.maximum(cage * medial * base - beating * np.sqrt(base), 0) * (y > chest.apex), np.float32)


def airway(chest: Chest, grid: Grid) -> Array:
    """Return trachea and main bronchi, cm of air."""
    carina = chest.apex + 9.4
    y = np.linspace(-21, carina, 12)
    drift = chest.shift * np.clip((y - chest.apex) / 9.4, 0, 1) + 0.25 * chest.turn - 0.3 * (y > chest.apex + 5)
    trunk = np.stack([drift, y], axis=1)
    right = np.array([trunk[-1], trunk[-1] + [-2.6, 2.6], trunk[-1] + [-4.0, 4.6]])
    left = np.array([trunk[-1], trunk[-1] + [2.4, 1.7], trunk[-1] + [4.6, 3.3]])
    return grid.blur(2.1 * grid.stroke([trunk], 1.7) + 1.0 * grid.stroke([right, left], 1.0), 0.15)


def breasts(chest: Chest, grid: Grid) -> Array:
    """Return breast tissue (or the pectoral fold) over the lower zones, cm."""
    if chest.breast < 0.05:
        return np.zeros_like(grid.x)
    droop = 0.45 * chest.breast
    x = (np.abs(grid.x) - 0.58 * chest.width) / (0.42 * chest.width + 0.35 * chest.breast)
    y = (grid.y - (chest.apex + 0.68 * chest.height + droop)) / (4.2 + 0.7 * chest.breast)
    y = np.where(y < 0, 0.62 * y, 1.15 * y)
    fading = smoothstep(0.55 * (y + 1))
    return np.asarray(1.5 * chest.breast * fading * np.sqrt(np.maximum(1 - x * x - y * y, 0)), np.float32)


def stomach(chest: Chest, grid: Grid, rng: np.random.Generator) -> Array:
    """Draw the gastric air bubble under the left dome, with a fluid level when upright; absent in one of five."""
    present, wide, tall, deep = rng.random(4).tolist()
    if present < 0.2:
        return np.zeros_like(grid.x)
    b = 0.9 + 1.1 * tall
    x = (grid.x - 0.48 * chest.width) / (1.6 + 1.8 * wide)
    y = (grid.y - (chest.domes[1] + 1.5 + b)) / b
    level = 0.35 if chest.view == "PA" else 2.0
    return np.asarray((0.8 + 2.0 * deep) * np.sqrt(np.maximum(1 - x * x - y * y, 0)) * (y < level), np.float32)


def scene(chest: Chest, grid: Grid, rng: np.random.Generator) -> Scene:
    """Return the path lengths through a chest without findings."""
    side = np.where(grid.x < 0, np.int8(-1), np.int8(1))
    wall = chest.outer(grid.y)
    radius2 = heart(chest, grid)
    blank = np.zeros_like(grid.x)
    return Scene(
        chest=chest,
        grid=grid,
        body=body(chest, grid) + breasts(chest, grid),
        lung=lung(chest, grid, wall, side, radius2),
        aeration=np.ones_like(blank),
        vessels=vessels(chest, grid, rng),
        bone=skeleton(chest, grid, wall),
        solid=blank.copy(),
        gas=airway(chest, grid) + stomach(chest, grid, rng),
        metal=blank.copy(),
        heart=radius2 < 1,
        side=side,
        ax=np.abs(grid.x),
        wall=wall,
    )
