"""Renders one row of the cohort as a radiograph: a pure function of the row, the seed and the size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medlt.data.phantom.anatomy import chest
from medlt.data.phantom.devices import incidentals
from medlt.data.phantom.findings import DRAW, RESHAPE
from medlt.data.phantom.grid import Array, grid
from medlt.data.phantom.projection import Exposure, develop, display, expose, window
from medlt.data.phantom.scene import Scene, scene
from medlt.rng import numpy_generator
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
"""Findings with the same appearance in every study of a patient, because they do not change in weeks."""
SMALLEST = 32
Lesions = Mapping[str, tuple[int, str, str]]
"""Finding -> key of its looks, see `lesion`."""


@dataclass(frozen=True)
class Film:
    """A finished exposure: 12-bit `pixels` (bright = dense), its display window, and the true masks."""

    pixels: NDArray[np.uint16]
    centre: int
    width: int
    spacing_mm: float
    masks: Mapping[str, NDArray[np.bool_]]
    """One mask per finding that is present."""
    anatomy: Mapping[str, NDArray[np.bool_]]
    """heart, thorax (inside the rib cage), lung (visible aerated lung)."""

    @property
    def image(self) -> Array:
        """Return the displayed image, float32 [H,W] in [0,1]."""
        return display(self.pixels, self.centre, self.width)


def check_size(size: int) -> None:
    """Raise InputError if the size is too small for a chest."""
    if size < SMALLEST:
        raise InputError(f"phantom size {size}: a chest needs at least {SMALLEST} px; choose 64 or more")


def lesion(row: Mapping[str, object], finding: str, seed: int) -> tuple[int, str, str]:
    """Return the key of all chance in how a finding of a row looks."""
    return seed, finding, str(row["patient_id"] if finding in CHRONIC else row["uid"])


def beam(
    row: Mapping[str, object], seed: int, size: int, lesions: Lesions | None = None
) -> tuple[Scene, dict[str, NDArray[np.bool_]]]:
    """Return the path lengths with all findings of the row, and a mask for each; arguments as `film`."""
    uid, patient = str(row["uid"]), str(row["patient_id"])
    keys = {name: lesion(row, name, seed) for name in DRAW} | dict(lesions or {})
    built = chest(
        sex=str(row["sex"]),
        age=float(str(row["age"])),
        view=str(row["view"]),
        body=numpy_generator(seed, "body", patient),
        study=numpy_generator(seed, "study", uid),
    )
    present = [name for name in DRAW if float(str(row.get(name, 0))) == 1]
    for name in present:
        if name in RESHAPE:
            built = RESHAPE[name](built, numpy_generator(*keys[name]))
    turn, right, down, field = numpy_generator(seed, "pose", uid).standard_normal(4).tolist()
    loose = 1.6 if built.view == "AP" else 1.0
    offset = (0.45 * loose * float(right), -0.6 + 0.5 * loose * float(down))
    plane = grid(size, 36.5 + 0.9 * float(np.clip(field, -2, 2)), 0.018 * loose * float(turn), offset)
    maps = scene(built, plane, numpy_generator(seed, "vessels", patient))
    incidentals(maps, numpy_generator(seed, "incidentals", uid))
    return maps, {name: DRAW[name](maps, numpy_generator(*keys[name])) for name in present}


def film(row: Mapping[str, object], seed: int, size: int = 256, lesions: Lesions | None = None) -> Film:
    """Expose one row. `row` holds uid, patient_id, view, sex, age and 0/1 columns of findings; absent ones are 0.

    A patient's anatomy hangs on (seed, patient_id), the rest on (seed, uid): never on the other rows or their order.
    lesions: findings that look as in another row, by its key (`lesion`). Raises InputError for a size below 32 px.
    """
    check_size(size)
    uid = str(row["uid"])
    maps, masks = beam(row, seed, size, lesions)
    exposure = Exposure.draw(maps.chest.view, numpy_generator(seed, "exposure", uid))
    pixels = develop(expose(maps, exposure, numpy_generator(seed, "noise", uid)), maps, exposure)
    anatomy = {"heart": maps.heart, "thorax": maps.thorax, "lung": maps.lung * maps.aeration > 0.5}
    return Film(pixels, *window(exposure), 10 * maps.grid.spacing, masks, anatomy)


def render(row: Mapping[str, object], seed: int, size: int = 256) -> tuple[Array, dict[str, NDArray[np.bool_]]]:
    """Return the image (float32 [H,W] in [0,1], upright, dense = bright) and a mask per present finding. See `film`."""
    exposed = film(row, seed, size)
    return exposed.image, dict(exposed.masks)
