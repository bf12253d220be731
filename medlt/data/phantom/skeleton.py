"""Path lengths in cm of dense bone: ribs, clavicles, scapulae, humeri and spine.

A rib is a tilted ring seen from the front: with s = |x| / W its posterior arc runs along y0 - T sqrt(1 - s^2), its
anterior arc along y0 + T' sqrt(1 - s^2), and both meet at the lateral chest wall.
"""

from __future__ import annotations

import numpy as np

from medlt.data.phantom.anatomy import Chest
from medlt.data.phantom.grid import Array, Grid, smoothstep

_RIBS = 11
_CROWDING = 0.0026
"""Upper intercostal spaces are narrower: rib number = v / 2.05 - _CROWDING v^2 at v cm below the first."""


def _tube(distance: Array, radius: Array | float) -> Array:
    """Return the path through a cortical tube of unit peak: marrow inside, brighter towards its rim."""
    q = np.clip(distance / radius, 0, 1)
    return np.asarray((0.6 * np.sqrt(1 - q * q) + 0.55 * np.exp(-(((q - 0.82) / 0.13) ** 2))) * (distance < radius))


def _arcs(v: Array, slope: Array, count: int, radius: float) -> tuple[Array, Array]:
    """Return tubes along the level lines of v: (path, rib number)."""
    density = np.maximum(1 / 2.05 - 2 * _CROWDING * v, 0.3)
    number = v / 2.05 - _CROWDING * v * v
    nearest = np.clip(np.round(number), 0, count - 1)
    distance = np.abs(number - nearest) / density / np.sqrt(1 + slope * slope)
    return _tube(distance, radius), nearest


def ribs(chest: Chest, grid: Grid, wall: Array) -> Array:
    """Return posterior and anterior arcs inside the thoracic cage; anterior ends fade into cartilage."""
    ring = wall + 0.45
    ax = np.abs(grid.x)
    s = np.clip(ax / ring, 0, 1)
    root = np.sqrt(np.maximum(1 - s * s, 0.012))
    inside = np.clip((ring - ax) / (2 * grid.spacing) + 0.5, 0, 1) * (ax > 1.2)
    start = chest.apex + 2.2 + chest.rib_phase
    back, front = 3.1 * chest.rib_slope, 4.9 * chest.rib_slope
    lean = s / (ring * root)
    posterior, _ = _arcs(grid.y + back * root - start, back * lean, _RIBS, 0.55)
    anterior, number = _arcs(grid.y - front * root - start, front * lean, 7, 0.68)
    bony = smoothstep((s - 0.38 - 0.03 * number) / 0.14)
    edge = np.minimum(1 / root, 2.6)
    path = 0.5 * posterior + 0.3 * anterior * bony
    return np.asarray(path * edge * inside * (grid.y > chest.apex - 1.5) * chest.bone, np.float32)


def _clavicle(chest: Chest, grid: Grid, side: int) -> Array:
    """Return an S-shaped tube from beside the sternal notch to the shoulder; higher and flatter on AP films."""
    lift = 1.6 if chest.view == "AP" else 0.0
    u = np.linspace(0, 1, 14)
    x = side * (1.9 + u * (chest.width + 1.2)) + chest.turn * (1 - u)
    y = chest.apex + 4.6 - 0.6 * lift - u * (3.6 - 0.4 * lift) + 0.55 * np.sin(2 * np.pi * u)
    line = [np.stack([x, y], axis=1)]
    return 1.0 * grid.stroke(line, 1.5) - 0.4 * grid.stroke(line, 0.95)


def _scapula(chest: Chest, grid: Grid, side: int) -> Array:
    """Return a thin blade with denser borders: lateral to the lungs on PA, over them on AP."""
    inward = 2.6 if chest.view == "AP" else 0.2
    x0 = chest.width + 0.9 - inward
    shape = np.array([[x0 - 1.6, 3.2], [x0 - 0.4, 13.0], [x0 + 0.8, 12.6], [x0 + 5.2, 4.6], [x0 + 3.2, 2.6]])
    shape = np.stack([side * shape[:, 0], shape[:, 1] + chest.apex], axis=1)
    border = grid.stroke([np.concatenate([shape, shape[:1]])], 0.5)
    spine = grid.stroke([np.stack([side * np.array([x0 - 1.2, x0 + 5.5]), chest.apex + np.array([5.2, 1.8])], 1)], 0.8)
    return np.asarray(0.1 * grid.fill(shape) + 0.22 * border + 0.25 * spine)


def _humerus(chest: Chest, grid: Grid, side: int) -> Array:
    """Return head and shaft of the upper arm, at the image's upper corners."""
    cx, cy = side * (chest.width + 6.3), chest.apex + 3.6
    distance = np.hypot(grid.x - cx, grid.y - cy)
    head = 1.1 * np.sqrt(np.maximum(1 - (distance / 2.4) ** 2, 0))
    shaft = np.array([[cx, cy + 1.0], [cx + side * 1.4, cy + 14]])
    return np.asarray(head + 0.75 * grid.stroke([shaft], 2.3) - 0.3 * grid.stroke([shaft], 1.2))


def spine(chest: Chest, grid: Grid) -> Array:
    """Return vertebral bodies with disc spaces, pedicles and spinous processes."""
    columns = np.flatnonzero(np.abs(grid.x - 0.25 * chest.turn).min(axis=0) < 2.3)
    near = slice(columns[0], columns[-1] + 1)
    x, level = grid.x[:, near] - 0.25 * chest.turn, (grid.y[:, near] - chest.apex) / 2.45
    within = level - np.floor(level)
    waist = 1.75 + 0.25 * (2 * within - 1) ** 2
    column = smoothstep((waist - np.abs(x)) / 0.45 + 0.5)
    bodies = smoothstep(7 * np.minimum(within, 1 - within))
    pedicles = np.exp(-(((np.abs(x) - 1.2) / 0.25) ** 2) - ((within - 0.4) / 0.16) ** 2)
    process = np.exp(-((x / 0.28) ** 2) - ((within - 0.75) / 0.2) ** 2)
    bone: Array = np.zeros(grid.x.shape, np.float32)
    bone[:, near] = chest.bone * (column * (0.35 + 0.35 * bodies) + 0.3 * pedicles + 0.35 * process)
    return bone


def skeleton(chest: Chest, grid: Grid, wall: Array) -> Array:
    """Return all bone in the beam, cm."""
    girdle = sum(part(chest, grid, side) for part in (_clavicle, _scapula, _humerus) for side in (-1, 1))
    return np.asarray(ribs(chest, grid, wall) + spine(chest, grid) + chest.bone * grid.blur(np.asarray(girdle), 0.1))
