"""Draws support devices: pacemaker, central line, tracheal and gastric tubes, chest drain, wires.

Also draws shadows that mimic findings: electrodes, skin folds, nipple shadows, old granulomas, basal scars.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medlt.data.phantom.anatomy import Chest
from medlt.data.phantom.grid import Array
from medlt.data.phantom.scene import Scene

Rng = np.random.Generator
Line = NDArray[np.float64]


def _spline(points: list[tuple[float, float]]) -> Line:
    """Return a smooth line [40,2] through control points (Catmull-Rom)."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, len(points) - 1 - 1e-9, 40)
    i = t.astype(int)
    u = (t - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return np.asarray(0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * (b - c) + d - a) * u**3))


def _catheter(scene: Scene, points: list[tuple[float, float]], width: float, depth: float) -> Array:
    return depth * scene.grid.stroke([_spline(points)], width)


def _vena_cava(chest: Chest, below: float) -> tuple[float, float]:
    """Return a point of the superior vena cava, in cm below the apices."""
    return -chest.mediastinum + 0.6 + chest.shift, chest.apex + below


def pacemaker(scene: Scene, rng: Rng) -> Array:
    """Draw a generator below one clavicle, usually the left, and one or two leads to right atrium and ventricle."""
    chest = scene.chest
    side = -1 if rng.random() < 0.15 else 1
    jitter = rng.uniform(-0.8, 0.8, 2).tolist()
    cx, cy = side * (0.68 * chest.width) + jitter[0], chest.apex + 6.0 + jitter[1]
    turn = np.linspace(0, 2 * np.pi, 40)
    box = np.stack([cx + 2.1 * np.cos(turn), cy + 1.9 * np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** 0.6], axis=1)
    vein = (side * (0.3 * chest.width), chest.apex + 3.4)
    half = chest.heart_width / 2
    floor = max(chest.domes)
    ventricle = [(cx, cy - 1.6), vein, _vena_cava(chest, 6.5), _vena_cava(chest, 11.5)]
    tip = [(0.0, floor - 1.4), (0.7 * half + chest.shift, floor - 1.0)]
    atrium = [*ventricle[:3], (-chest.mediastinum + chest.shift - 0.4, floor - 3.2), (-0.8, floor - 4.6)]
    leads = [_spline(ventricle + tip)] + ([_spline(atrium)] if rng.random() < 0.6 else [])
    return 0.85 * scene.grid.fill(box) + 0.7 * scene.grid.stroke(leads, 0.2)


def central_line(scene: Scene, rng: Rng) -> Array:
    """Draw a catheter from the neck, or from the arm, to the cavo-atrial junction."""
    chest = scene.chest
    end = _vena_cava(chest, 9.5 + 2.5 * float(rng.random()))
    if rng.random() < 0.5:
        points = [(-4.4, chest.apex - 5), (-3.4, chest.apex + 0.5), _vena_cava(chest, 4.5), end]
    else:
        side = -1 if rng.random() < 0.6 else 1
        arm = [(side * (chest.width + 5), chest.apex + 7), (side * chest.width, chest.apex + 4.2)]
        points = [*arm, (side * 0.35 * chest.width, chest.apex + 3.2), _vena_cava(chest, 5.5), end]
    return _catheter(scene, points, 0.32, 0.45)


def tracheal_tube(scene: Scene, rng: Rng) -> Array:
    """Draw a tube that ends 3 to 6 cm above the carina, with its radio-opaque stripe."""
    end = scene.chest.apex + 9.4 - float(rng.uniform(3, 6))
    points = [(0.4, scene.chest.apex - 6), (0.1, scene.chest.apex - 1), (0.0, end)]
    return _catheter(scene, points, 0.9, 0.12) + _catheter(scene, [(x + 0.3, y) for x, y in points], 0.24, 0.5)


def gastric_tube(scene: Scene, rng: Rng) -> Array:
    """Draw a tube down the oesophagus, through the hiatus, into the stomach."""
    chest = scene.chest
    floor = chest.domes[1]
    points = [(0.5, chest.apex - 6), (0.3, chest.apex + 6), (0.8 + chest.shift, floor - 4), (1.2, floor + 1.5)]
    return _catheter(scene, [*points, (4.0 + 3 * float(rng.random()), floor + 5.5)], 0.4, 0.42)


def chest_drain(scene: Scene, rng: Rng) -> Array:
    """Draw a tube through the lateral wall, up towards the apex, with two parallel edges."""
    chest = scene.chest
    side = -1 if rng.random() < 0.5 else 1
    tip = chest.point(side, 0.12 + 0.3 * float(rng.random()), 0.5)
    entry = chest.point(side, 0.75, 1.0)
    points = [(side * (chest.width + 5), entry[1] + 2.5), entry, chest.point(side, 0.5, 0.75), tip]
    return _catheter(scene, points, 0.95, 0.42) - _catheter(scene, points, 0.5, 0.24)


def sternal_wires(scene: Scene, rng: Rng) -> Array:
    """Draw cerclage wires after sternotomy, and a prosthetic valve in half of the cases."""
    chest = scene.chest
    turn = np.linspace(0, 2 * np.pi, 16)
    x = 0.4 * chest.turn
    loops = [
        np.stack([x + 0.75 * np.cos(turn), chest.apex + level + 0.32 * np.sin(turn)], axis=1)
        for level in 6.0 + 2.3 * np.arange(6) + rng.uniform(-0.2, 0.2, 6)
    ]
    wires = 1.2 * scene.grid.stroke(loops, 0.13)
    if rng.random() < 0.5:
        valve = np.stack([1.6 + 1.3 * np.cos(turn), max(chest.domes) - 4.5 + 0.9 * np.sin(turn)], axis=1)
        wires = wires + 1.2 * scene.grid.stroke([valve], 0.22)
    return wires


_KINDS: tuple[tuple[Callable[[Scene, Rng], Array], float, float], ...] = (
    (pacemaker, 0.34, 0.12),
    (central_line, 0.26, 0.4),
    (sternal_wires, 0.22, 0.1),
    (chest_drain, 0.1, 0.12),
    (tracheal_tube, 0.0, 0.35),
    (gastric_tube, 0.08, 0.3),
)
"""Each device with its probability on PA and on AP films."""


def support_device(scene: Scene, rng: Rng) -> NDArray[np.bool_]:
    """Draw at least one device, often several on AP films (intensive care); return their mask."""
    odds = np.array([kind[2 if scene.chest.view == "AP" else 1] for kind in _KINDS])
    chosen = rng.random(len(_KINDS)) < odds
    chosen[rng.choice(len(_KINDS), p=odds / odds.sum())] = True
    drawn = sum((draw(scene, rng) for (draw, _, _), on in zip(_KINDS, chosen, strict=True) if on), start=0 * scene.lung)
    scene.metal += drawn
    return np.asarray(drawn > 0.05)


def _electrodes(scene: Scene, rng: Rng) -> None:
    for down, across, bend in rng.random((3, 3)).tolist():
        x, y = scene.chest.point(-1 if bend < 0.5 else 1, 0.2 + 0.9 * down, 0.3 + 0.6 * across)
        scene.metal += 0.4 * (np.hypot(scene.grid.x - x, scene.grid.y - y) < 0.45)


def _skin_fold(scene: Scene, rng: Rng) -> None:
    """Draw an edge up to which brightness rises, with vessels beyond it; it mimics a pneumothorax."""
    side = -1 if rng.random() < 0.5 else 1
    x = side * scene.grid.x - (0.62 + 0.2 * float(rng.random())) * scene.chest.width - 0.12 * scene.grid.y
    scene.body += (0.9 * np.exp(np.minimum(x, 0) / 0.9) * (x < 0) * scene.thorax).astype(np.float32)


def _nipples(scene: Scene, rng: Rng) -> None:
    across, down = 0.62 + 0.12 * rng.random(), 0.76 + 0.14 * rng.random()
    for side in (-1, 1):
        x, y = side * across * scene.chest.width, scene.chest.apex + down * scene.chest.height
        distance = np.hypot(scene.grid.x - x, scene.grid.y - y) / 0.5
        scene.body += (0.7 * np.sqrt(np.maximum(1 - distance**2, 0))).astype(np.float32)


def _granuloma(scene: Scene, rng: Rng) -> None:
    side, down, across = rng.random(3).tolist()
    x, y = scene.chest.point(-1 if side < 0.5 else 1, 0.1 + 0.6 * down, 0.2 + 0.6 * across)
    scene.bone += 0.9 * (np.hypot(scene.grid.x - x, scene.grid.y - y) < 0.22)


def _scar(scene: Scene, rng: Rng) -> None:
    side, down, slant = rng.random(3).tolist()
    x, y = scene.chest.point(-1 if side < 0.5 else 1, 0.75 + 0.2 * down, 0.5)
    line = np.array([[x - 1.2, y - 0.6 * slant], [x + 1.2, y + 0.6 * slant]])
    scene.solid += 0.7 * scene.grid.stroke([line], 0.15)


def incidentals(scene: Scene, rng: Rng) -> None:
    """Draw shadows that are not findings, at rates that depend on view and age."""
    portable, old = scene.chest.view == "AP", scene.chest.age > 50
    rates = (
        (_electrodes, 0.5 if portable else 0.02),
        (_skin_fold, 0.2 if portable else 0.02),
        (_nipples, 0.22),
        (_granuloma, 0.16 if old else 0.05),
        (_scar, 0.22 if old else 0.06),
    )
    for (draw, rate), drawn in zip(rates, rng.random(len(rates)), strict=True):
        if drawn < rate:
            draw(scene, rng)
