"""One row of the cohort to one radiograph: a pure function of the row's identity, the seed and the size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medlt.chance import rng
from medlt.data.phantom.anatomy import chest
from medlt.data.phantom.devices import incidentals
from medlt.data.phantom.findings import DRAW, RESHAPE
from medlt.data.phantom.grid import Array, grid
from medlt.data.phantom.projection import Exposure, develop, display, expose, window
from medlt.data.phantom.scene import Scene, scene
from medlt.types import InputError

FINDINGS = (
    "Cardiomegaly",
    "Effusion",
    "Pneumothorax",
    "Nodule",
    "Mass",
    "Consolidation",
    "Atelectasis",
    "Support_Device",
    "Pneumoperitoneum",
)
CHRONIC = frozenset({"Cardiomegaly", "Nodule", "Mass", "Support_Device"})
"""Findings that look alike in every study of a patient, because they do not change in weeks."""
SMALLEST = 32


@dataclass(frozen=True)
class Film:
    """A finished exposure: 12-bit `pixels` (bright = dense), its display window, and the truth behind it."""

    pixels: NDArray[np.uint16]
    centre: int
    width: int
    spacing_mm: float
    masks: Mapping[str, NDArray[np.bool_]]
    """One mask a finding present."""
    anatomy: Mapping[str, NDArray[np.bool_]]
    """heart, thorax (inside the rib cage), lung (aerated lung that shows)."""

    @property
    def image(self) -> Array:
        """float32 [H,W] in [0,1], as a viewer shows it."""
        return display(self.pixels, self.centre, self.width)


def check_size(size: int) -> None:
    """Raise InputError if a chest cannot be drawn on so few pixels."""
    if size < SMALLEST:
        raise InputError(f"phantom size {size}: a chest needs at least {SMALLEST} px; choose 64 or more")


def beam(row: Mapping[str, object], seed: int, size: int) -> tuple[Scene, dict[str, NDArray[np.bool_]]]:
    """The path lengths with every finding of the row in them, and a mask for each; arguments as `film`."""
    uid, patient = str(row["uid"]), str(row["patient_id"])
    keys = {name: (seed, name, patient if name in CHRONIC else uid) for name in DRAW}
    built = chest(
        sex=str(row["sex"]),
        age=float(str(row["age"])),
        view=str(row["view"]),
        body=rng(seed, "body", patient),
        study=rng(seed, "study", uid),
    )
    present = [name for name in DRAW if float(str(row.get(name, 0))) == 1]
    for name in present:
        if name in RESHAPE:
            built = RESHAPE[name](built, rng(*keys[name]))
    turn, right, down, field = rng(seed, "pose", uid).standard_normal(4).tolist()
    loose = 1.6 if built.view == "AP" else 1.0
    offset = (0.45 * loose * float(right), -0.6 + 0.5 * loose * float(down))
    plane = grid(size, 36.5 + 0.9 * float(np.clip(field, -2, 2)), 0.018 * loose * float(turn), offset)
    maps = scene(built, plane, rng(seed, "vessels", patient))
    incidentals(maps, rng(seed, "incidentals", uid))
    return maps, {name: DRAW[name](maps, rng(*keys[name])) for name in present}


def film(row: Mapping[str, object], seed: int, size: int = 256) -> Film:
    """Expose one row. `row` holds uid, patient_id, view, sex, age and 0/1 columns of findings; absent ones are 0.

    A patient's anatomy hangs on (seed, patient_id), the rest on (seed, uid): never on the other rows or their order.
    Raises InputError for a size below 32 px.
    """
    check_size(size)
    uid = str(row["uid"])
    maps, masks = beam(row, seed, size)
    exposure = Exposure.draw(maps.chest.view, rng(seed, "exposure", uid))
    pixels = develop(expose(maps, exposure, rng(seed, "noise", uid)), maps, exposure)
    anatomy = {"heart": maps.heart, "thorax": maps.thorax, "lung": maps.lung * maps.aeration > 0.5}
    return Film(pixels, *window(exposure), 10 * maps.grid.spacing, masks, anatomy)


def render(row: Mapping[str, object], seed: int, size: int = 256) -> tuple[Array, dict[str, NDArray[np.bool_]]]:
    """The image (float32 [H,W] in [0,1], upright, dense = bright) and a mask for each finding present. See `film`."""
    exposed = film(row, seed, size)
    return exposed.image, dict(exposed.masks)
