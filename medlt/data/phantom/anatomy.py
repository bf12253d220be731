"""One patient's chest as numbers, drawn from age and sex, and the curves they define (cm in the detector plane).

Typical adult measures: internal thoracic width 25-30 cm, cardiothoracic ratio 0.42-0.50 on a PA film, right dome 1-2 cm
above the left, carina at T4-T5. A side is -1 for the patient's right (image left), +1 for the left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medlt.data.phantom.grid import Array

APEX_X = 4.8
"""|x| of the lung apices."""
AP_MAGNIFICATION = 1.12
"""How much wider the heart is on an AP film: it lies nearer the tube, and the tube nearer the patient."""


@dataclass(frozen=True)
class Chest:
    """Geometry of one image."""

    sex: str
    age: float
    view: str
    width: float
    """Half the internal thoracic width at the bases."""
    apex: float
    """y of the lung apices."""
    height: float
    """From the apices to the higher dome at rest."""
    domes: tuple[float, float]
    """y of the right and the left hemidiaphragm's top."""
    depth: float
    """Front to back, skin to skin."""
    wall: float
    """Soft tissue lateral to the ribs."""
    cardiothoracic: float
    """Heart width over internal thoracic width, as a PA film would show it."""
    tilt: float
    """Of the heart's long axis below the horizontal, radians."""
    mediastinum: float
    """Half-width of the upper mediastinum."""
    knob: float
    """Prominence of the aortic knob; grows with age."""
    shift: float = 0.0
    """Of the mediastinum, + to the patient's left."""
    turn: float = 0.0
    """Rotation about the long axis as the shift of the sternum's end, cm."""
    bone: float = 1.0
    """Relative mineral density."""
    rib_phase: float = 0.0
    rib_slope: float = 1.0
    breast: float = 0.0
    """Depth of breast tissue."""

    def dome(self, side: int) -> float:
        """Return y of the top of one hemidiaphragm."""
        return self.domes[0] if side < 0 else self.domes[1]

    @property
    def heart_width(self) -> float:
        """Return the transverse diameter of the cardiac shadow in this view."""
        return self.cardiothoracic * 2 * self.width * (AP_MAGNIFICATION if self.view == "AP" else 1.0)

    def outer(self, y: Array) -> Array:
        """Return |x| of the inner chest wall at height y; APEX_X at the apex, `width` at the bases."""
        t = 1 - np.clip((y - self.apex) / self.height, 0, 1)
        return np.asarray(APEX_X + (self.width - APEX_X) * np.sqrt(1 - t * t * (0.85 * t + 0.15)))

    def inner(self, y: Array, side: NDArray[np.signedinteger] | int) -> Array:
        """Return the signed distance of the mediastinal border from the midline, measured towards `side`."""
        t = np.clip((y - self.apex) / (0.16 * self.height), 0, 1)
        border = APEX_X - (APEX_X - self.mediastinum) * np.sqrt(1 - (1 - t) ** 2)
        level = y - self.apex
        left = self.knob * np.exp(-(((level - 7.2) / 1.35) ** 2)) + 0.9 * np.exp(-(((level - 10.2) / 1.5) ** 2))
        right = 0.45 * np.exp(-(((level - 9.0) / 3.5) ** 2))
        return np.asarray(border + np.where(np.asarray(side) > 0, left, right))

    def diaphragm(self, ax: Array, side: NDArray[np.signedinteger] | int) -> Array:
        """Return y of the dome's outline at distance ax from the midline: steep laterally, flat medially.""" ""
        top = np.where(np.asarray(side) < 0, self.domes[0], self.domes[1])
        crest = 0.5 * self.width
        u = np.abs(ax - crest) / crest
        return np.asarray(top + np.where(ax > crest, 5.2 * u**2.3, 1.7 * u**2))

    def point(self, side: int, down: float, across: float) -> tuple[float, float]:
        """Return a point of one lung: `down` 0 at the apex, 1 at the dome; `across` 0 medial, 1 at the wall."""
        y = self.apex + down * (self.dome(side) - self.apex)
        height = np.array(y, np.float32)
        low, high = float(self.inner(height, side)), float(self.outer(height))
        return side * (low + across * (high - low)), y

    def hilum(self, side: int) -> tuple[float, float]:
        """Return the point where the vessels of one lung start; the left hilum is higher."""
        return side * (self.mediastinum + 0.7) + self.shift, self.apex + (11.4 if side < 0 else 10.6)

    def moved(self, *, shift: float = 0.0, right_dome: float = 0.0, left_dome: float = 0.0) -> Chest:
        """Return this chest with the mediastinum shifted and the domes lowered (+) or raised (-), in cm."""
        domes = (self.domes[0] + right_dome, self.domes[1] + left_dome)
        return replace(self, shift=self.shift + shift, domes=domes)


def _build(sex: str, age: float, body: np.random.Generator) -> dict[str, float]:
    """Draw the constant properties of a patient: frame, habitus, heart size, bone."""
    female = sex == "F"
    frame, fat, heart, skeleton = body.standard_normal(4).tolist()
    old = max(0.0, (age - 50) / 40)
    return {
        "width": (12.7 if female else 13.9) + 0.55 * frame,
        "height": (20.0 if female else 21.8) + 0.8 * frame - 0.5 * old,
        "depth": 21.5 + 2.2 * fat + 1.5 * old,
        "wall": float(np.clip(2.6 + 0.8 * fat, 1.3, 5.0)),
        "cardiothoracic": float(np.clip(0.445 + 0.022 * heart + 0.015 * old, 0.37, 0.485)),
        "tilt": float(np.clip(0.66 - 0.1 * fat - 0.05 * frame, 0.4, 0.85)),
        "mediastinum": 2.3 + 0.15 * fat + 0.2 * old,
        "knob": 0.8 + 0.9 * old,
        "bone": float(np.clip(1.0 + 0.12 * skeleton - (0.3 if female else 0.15) * old, 0.5, 1.3)),
        "rib_phase": float(body.uniform(-0.5, 0.5)),
        "rib_slope": float(body.uniform(0.85, 1.15)),
        "breast": float(np.clip(body.gamma(4, 0.6), 0.6, 5.0)) if female else 0.25 * float(body.random()),
    }


def chest(*, sex: str, age: float, view: str, body: np.random.Generator, study: np.random.Generator) -> Chest:
    """Draw a chest: `body` determines the patient's constant properties, `study` breath and pose on the day."""
    build = _build(sex, age, body)
    breath, step, rotation, lift = study.standard_normal(4).tolist()
    portable = view == "AP"
    apex = -14.0 - 0.25 * (build["height"] - 21)
    right = apex + build["height"] + 0.8 * breath - (1.8 if portable else 0.0)
    left = right + float(np.clip(1.3 + 0.5 * step, 0.2, 2.6))
    return Chest(
        sex=sex,
        age=age,
        view=view,
        apex=apex + 0.3 * lift,
        domes=(right, left),
        turn=float(rotation) * (1.0 if portable else 0.5),
        **build,
    )
