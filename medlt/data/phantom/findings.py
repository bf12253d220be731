"""Draws nine findings by their radiological descriptions. Each has one or two functions with their own random stream:

`reshape` changes the chest before projection (heart size, volume loss, shift); `draw` changes the path-length maps and
returns the mask of the finding. Both get a new stream with the same key, so that they agree on `Site`, and switching a
label on or off does not change the rest of the image.

Definitions: Hansell et al., "Fleischner Society: Glossary of Terms for Thoracic Imaging", Radiology 246 (2008):
a nodule measures up to 3 cm, a mass more; pneumothorax shows the visceral pleural line; cardiothoracic ratio > 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from medlt.data.phantom.anatomy import Chest
from medlt.data.phantom.devices import support_device
from medlt.data.phantom.grid import Array, smoothstep
from medlt.data.phantom.scene import Scene
from medlt.data.phantom.vessels import tree

Mask = NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True)
class Site:
    """Side (-1 right, +1 left), severity in [0,1] (small values are more common), and kind, a number in [0,1]."""

    side: int
    severity: float
    kind: float

    @classmethod
    def draw(cls, rng: Rng) -> Site:
        """Draw a site from the first three numbers of a finding's stream."""
        side, severity, kind = rng.random(3).tolist()
        return cls(-1 if side < 0.52 else 1, float(severity**1.3), float(kind))


def enlarge_heart(chest: Chest, rng: Rng) -> Chest:
    """Enlarge the heart to a cardiothoracic ratio of 0.515 to 0.645; its axis falls as the left ventricle grows."""
    site = Site.draw(rng)
    return replace(chest, cardiothoracic=0.515 + 0.13 * site.severity, tilt=chest.tilt - 0.12 * site.severity)


def cardiomegaly(scene: Scene, rng: Rng) -> Mask:
    """Return the mask of the heart, which `enlarge_heart` changed, and widen the vessels in the upper zones."""
    scene.vessels *= 1 + 0.35 * float(rng.random())
    return scene.heart


def _fluid(scene: Scene, side: int, volume: float) -> Array:
    """Return the share of the lung path filled with fluid: a meniscus, low medially and high at the chest wall."""
    chest, y = scene.chest, scene.grid.y
    across = np.clip(scene.ax / scene.wall, 0, 1)
    angle = chest.dome(side) + 4.6
    medial = angle - 1.2 - 8.5 * volume
    lateral = medial - 1.4 - 2.6 * min(1.0, 3 * volume)
    surface = medial + (lateral - medial) * across**3
    supine = min(0.16, volume) * smoothstep((y - chest.apex - 6) / 12) if chest.view == "AP" else 0.0
    return np.asarray(np.maximum(0.97 * smoothstep((y - surface) / 1.5 + 0.5), supine) * scene.on(side), np.float32)


def effusion(scene: Scene, rng: Rng) -> Mask:
    """Draw free pleural fluid: blunted costophrenic angle, meniscus, lost dome; a haze on supine films."""
    site = Site.draw(rng)
    volume = 0.02 + 0.8 * site.severity**1.6
    share = _fluid(scene, site.side, volume)
    if site.kind < 0.35:
        share = np.maximum(share, _fluid(scene, -site.side, volume * (0.4 + 0.6 * float(rng.random()))))
    scene.aeration *= 1 - share
    return np.asarray((share > 0.5) & (scene.lung > 0))


def _collapse(site: Site) -> tuple[float, float]:
    """Return the distance of the visceral pleura from the apex and from the wall, cm."""
    return 1.1 + 6.0 * site.severity**1.5, 0.5 + 4.2 * site.severity**1.5


def push_away(chest: Chest, rng: Rng) -> Chest:
    """Shift the mediastinum to the other side and lower the dome, for a large pneumothorax."""
    site = Site.draw(rng)
    push = 1.4 * max(0.0, site.severity - 0.4)
    lower = {"right_dome": push} if site.side < 0 else {"left_dome": push}
    return chest.moved(shift=-site.side * push, **lower)


def pneumothorax(scene: Scene, rng: Rng) -> Mask:
    """Draw air between the pleurae: a thin visceral line, black beyond it, the lung inside a little denser."""
    site = Site.draw(rng)
    chest, y = scene.chest, scene.grid.y
    top, lateral = _collapse(site)
    fallen = replace(chest, apex=chest.apex + top, width=chest.width - lateral)
    gap = lateral * (1 - smoothstep((y - chest.apex) / (1.15 * chest.height)))
    here = scene.on(site.side) & (scene.lung > 0)
    lateral_pleura = scene.ax - (fallen.outer(y) + lateral - gap)
    medial_pleura = np.where(y < fallen.apex + 3, fallen.inner(y, site.side) - scene.ax, -9)
    sideways = np.maximum(lateral_pleura, medial_pleura)
    depth = np.where(y > fallen.apex, sideways, fallen.apex - y + 0.3)
    beyond = here & (depth > 0)
    scene.vessels *= ~beyond
    scene.aeration *= np.where(here & ~beyond, 0.97 - 0.14 * site.severity, 1)
    scene.gas += np.where(beyond, 0.85 * scene.lung, 0)
    scene.lung *= np.where(beyond, 0.15, 1)
    scene.body += _pleura(scene, here & ~beyond, beyond)
    return np.asarray(beyond)


def _pleura(scene: Scene, lung: Mask, beyond: Mask) -> Array:
    """Return the visceral line: tissue edge-on, about 2 mm wide, along the side of `lung` that faces `beyond`."""
    away = cv2.distanceTransform((~beyond).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distance = (away - 1) * scene.grid.spacing
    return np.asarray(1.5 * min(1.0, 0.2 / scene.grid.spacing) * np.exp(-((distance / 0.13) ** 2)) * lung, np.float32)


def _ball(scene: Scene, centre: tuple[float, float], radius: float, shape: tuple[float, ...]) -> Array:
    """Return the path through a nearly round body; `shape`: relative sizes of harmonics 2, 3, ... of its outline."""
    dx, dy = scene.grid.x - centre[0], scene.grid.y - centre[1]
    angle = np.arctan2(dy, dx)
    outline = 1 + sum(size * np.cos((k + 2) * angle + 5 * k) for k, size in enumerate(shape))
    q = np.hypot(dx, dy) / (radius * outline / (1 + sum(abs(size) for size in shape)))
    return np.asarray(2 * radius * np.sqrt(np.maximum(1 - q * q, 0)), np.float32)


def nodule(scene: Scene, rng: Rng) -> Mask:
    """Draw one round opacity, sometimes two or three, 1.2 to 2.8 cm across, free in the lung."""
    site = Site.draw(rng)
    mask, centres = np.zeros(scene.lung.shape, bool), list[tuple[float, float]]()
    for i in range(1 if site.kind < 0.7 else 2 + (site.kind > 0.9)):
        down, across, size, again, wobble = rng.random(5).tolist()
        side = site.side if i == 0 or again < 0.6 else -site.side
        centre = scene.chest.point(side, 0.2 + 0.72 * down, 0.18 + 0.66 * across)
        if any(math.dist(centre, other) < 3.2 for other in centres):
            continue
        centres.append(centre)
        radius = 0.6 + 0.8 * (site.severity if i == 0 else size * site.severity)
        ball = _ball(scene, centre, radius, (0.1 * wobble, 0.04))
        scene.solid += (1.5 + 0.5 * (1 - site.severity)) * ball
        mask |= ball > 0
    return mask


def mass(scene: Scene, rng: Rng) -> Mask:
    """Draw one opacity of 3.3 to 7.5 cm, lobulated or spiculated."""
    site = Site.draw(rng)
    down, across, a, b, c, d = rng.random(6).tolist()
    radius = 1.85 + 1.9 * site.severity
    centre = scene.chest.point(site.side, 0.15 + 0.7 * down, 0.15 + 0.6 * across)
    ball = _ball(scene, centre, radius, (0.12 * a, 0.09 * b, 0.07 * c, 0.05 * d))
    if site.kind > 0.5:
        turns = rng.uniform(0, 2 * np.pi, 18)
        length = radius * rng.uniform(1.05, 1.6, 18)
        tips = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length[:, None] + centre
        scene.solid += 0.7 * scene.grid.stroke([np.stack([np.array(centre), tip]) for tip in tips], 0.12)
    scene.solid += ball
    return ball > 0


def consolidation(scene: Scene, rng: Rng) -> Mask:
    """Draw filled airspaces: a cloudy, fuzzy-edged opacity, sometimes limited by a fissure, with air bronchograms."""
    site = Site.draw(rng)
    down, across, wide, tall, fissure, start = rng.random(6).tolist()
    x, y = scene.chest.point(site.side, 0.25 + 0.7 * down, 0.15 + 0.5 * across)
    a, b = 2.8 + 3.4 * wide * (0.4 + 0.6 * site.severity), 2.6 + 3.6 * tall * (0.4 + 0.6 * site.severity)
    radius = np.hypot((scene.grid.x - x) / a, (scene.grid.y - y) / b)
    cloud = 0.22 * scene.grid.texture(rng, 3.2) + 0.1 * scene.grid.texture(rng, 1.2)
    share = smoothstep((1.3 - radius + cloud) / 1.1) * (0.35 + 0.4 * site.severity)
    if fissure < 0.35:
        share = share * smoothstep((y + 0.7 * b - 0.12 * scene.ax - scene.grid.y) / 0.3 + 0.5)
    share = np.where(scene.on(site.side), share, 0).astype(np.float32)
    bronchi = [c * [site.side, 1] + scene.chest.hilum(site.side) for g in tree(rng, 13.0, 7, 3) for c in g]
    air = scene.grid.blur(scene.grid.stroke(bronchi, 0.42), 0.06) * share * (start < 0.75)
    scene.vessels *= 1 - share
    scene.aeration *= 1 - share * (1 - 0.55 * air)
    return np.asarray((share > 0.2) & (scene.lung > 1))


def lose_volume(chest: Chest, rng: Rng) -> Chest:
    """Raise the dome and shift the mediastinum, more in lobar than in plate-like collapse."""
    site = Site.draw(rng)
    amount = 0.5 + 0.8 * site.severity
    pull, lift = ((0.5, 1.5), (1.3, 2.4), (1.6, 1.2))[_collapse_kind(site)]
    raised = {"right_dome": -lift * amount} if site.side < 0 else {"left_dome": -lift * amount}
    return chest.moved(shift=site.side * pull * amount, **raised)


def _collapse_kind(site: Site) -> int:
    """Return 0 for plate-like, 1 for lower lobe, 2 for upper lobe collapse."""
    return 0 if site.kind < 0.45 else 1 if site.kind < 0.8 else 2


def _plates(scene: Scene, site: Site, rng: Rng) -> Array:
    """Draw plate-like (discoid) atelectasis: one to three dense bands across a lower zone."""
    bands = []
    for down, across, slant, length in rng.random((1 + int(3 * site.severity), 4)).tolist():
        x, y = scene.chest.point(site.side, 0.72 + 0.26 * down, 0.3 + 0.4 * across)
        reach = np.array([1.6 + 2.2 * length, (0.8 * slant - 0.15) * 1.8])
        middle = np.array([x, y])
        bands.append(np.stack([middle - reach, middle + np.array([0, 0.25]), middle + reach]))
    return scene.grid.blur(scene.grid.stroke(bands, 0.35 + 0.35 * site.severity), 0.12) * (0.45 + 0.2 * site.severity)


def _lower_lobe(scene: Scene, site: Site) -> Array:
    """Draw a collapsed lower lobe: a wedge behind the heart, from hilum to dome, with a straight lateral edge."""
    chest = scene.chest
    hx, hy = chest.hilum(site.side)
    hx = abs(hx)
    foot = chest.mediastinum + (0.30 + 0.25 * site.severity) * chest.width
    run = np.clip((scene.grid.y - hy) / (chest.dome(site.side) + 1.0 - hy), 0, 1.3)
    edge = 0.7 * hx + (foot - 0.7 * hx) * run
    return np.asarray(smoothstep((edge - scene.ax) / 0.5 + 0.5) * smoothstep(run / 0.12))


def _upper_lobe(scene: Scene, site: Site) -> Array:
    """Draw a collapsed upper lobe: dense above a raised, concave fissure from the hilum to the wall."""
    chest = scene.chest
    hy = chest.hilum(site.side)[1]
    across = np.clip(scene.ax / chest.width, 0, 1)
    fissure = hy - 1.5 - (2.0 + 3.0 * site.severity) * across + 2.2 * (across - 0.5) ** 2
    return np.asarray(smoothstep((fissure - scene.grid.y) / 0.5 + 0.5))


def atelectasis(scene: Scene, rng: Rng) -> Mask:
    """Draw airless, shrunken lung; `lose_volume` raises the dome and moves the mediastinum."""
    site = Site.draw(rng)
    kind = _collapse_kind(site)
    if kind == 0:
        share = _plates(scene, site, rng)
    else:
        share = (0.5 + 0.35 * site.severity) * (_lower_lobe if kind == 1 else _upper_lobe)(scene, site)
    share = np.where(scene.on(site.side), share, 0).astype(np.float32)
    scene.aeration *= 1 - share
    return np.asarray((share > 0.08) & (scene.lung > 0.5))


def pneumoperitoneum(scene: Scene, rng: Rng) -> Mask:
    """Draw free air under the dome: a dark crescent between the thin white diaphragm and the liver, right first."""
    site = Site.draw(rng)
    mask = np.zeros(scene.lung.shape, bool)
    for side in (-1, 1) if site.kind > 0.5 else (-1,):
        height = (0.6 + 1.6 * site.severity) * (1.0 if side < 0 else 0.4 + 0.6 * float(rng.random()))
        crest = (0.5 + 0.1 * (float(rng.random()) - 0.5)) * scene.chest.width
        across = np.clip(np.abs(scene.ax - crest) / (3.2 + 2.0 * site.severity), 0, 1)
        under = scene.grid.y - scene.chest.diaphragm(scene.ax, side) - 0.3
        thick = np.maximum(height * (1 - across**2), 1e-3)
        inside = scene.on(side) & (under > 0) & (under < thick)
        profile = np.clip(under / 0.2, 0, 1) * np.sqrt(np.clip((thick - under) / thick, 0, 1))
        scene.gas += np.where(inside, (4.0 + 2.5 * site.severity) * profile, 0).astype(np.float32)
        mask |= inside
    return mask


RESHAPE: Mapping[str, Callable[[Chest, Rng], Chest]] = {
    "Cardiomegaly": enlarge_heart,
    "Pneumothorax": push_away,
    "Atelectasis": lose_volume,
}
DRAW: Mapping[str, Callable[[Scene, Rng], Mask]] = {
    "Cardiomegaly": cardiomegaly,
    "Consolidation": consolidation,
    "Atelectasis": atelectasis,
    "Nodule": nodule,
    "Mass": mass,
    "Pneumothorax": pneumothorax,
    "Effusion": effusion,
    "Pneumoperitoneum": pneumoperitoneum,
    "Support_Device": support_device,
}
"""The findings in drawing order: fluid and free air displace earlier ones, devices are drawn last."""
