"""Turns an image upright and makes its pixels square, as its own tags say; the presets of published data sets do not.

Patient Orientation (PS3.3 C.7.6.1.1.1) gives the directions of a row and of a column. A film is hung with the head up
and, if frontal, with the patient's left at the right. Pixels are as wide as high after the finer side was averaged.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from pydicom.dataset import Dataset

from medlt.data.convert.presets import Rendered
from medlt.data.dicom.attributes import remark

UPRIGHT = frozenset({"viewer", "linear16"})
MIRRORED = "mirrored left to right, as Patient Orientation says"
SQUARED = "averaged to square pixels"
ODD_ASPECT = "an implausible pixel aspect ratio was ignored"
_OPPOSITE = {"A": "P", "P": "A", "L": "R", "R": "L", "H": "F", "F": "H"}
_SLACK = 0.01
_MOST = 10.0
Spacing = tuple[float, float]


def turned_note(turns: int) -> str:
    """Return the note on an image that was turned by this number of counter-clockwise quarters."""
    return f"turned by {90 * turns} degrees counter-clockwise, as Patient Orientation says"


def upright(rendered: Rendered, spacing: Spacing | None, data: Dataset) -> tuple[Rendered, Spacing | None]:
    """Return the image as it is hung, with notes, and its spacing (row, column) in mm, None if unknown.

    An image without a usable Patient Orientation is not turned, one without spacing or aspect ratio not averaged.
    """
    turns, mirrored = hanging(remark(data, "PatientOrientation"))
    aspect = _aspect(spacing, data)
    pixels, notes = np.rot90(rendered.pixels, turns), list(rendered.notes)
    if turns:
        notes.append(turned_note(turns))
    if mirrored:
        pixels = pixels[:, ::-1]
        notes.append(MIRRORED)
    if turns % 2:
        spacing, aspect = None if spacing is None else spacing[::-1], 1 / aspect
    if not 1 / _MOST <= aspect <= _MOST:
        notes.append(ODD_ASPECT)
    elif abs(aspect - 1) > _SLACK:
        pixels = _squared(pixels, aspect)
        spacing = None if spacing is None else (max(spacing), max(spacing))
        notes.append(SQUARED)
    return replace(rendered, pixels=np.ascontiguousarray(pixels), notes=tuple(notes)), spacing


def hanging(orientation: str) -> tuple[int, bool]:
    r"""Return counter-clockwise quarter turns, and whether to mirror then, for an orientation such as H\L.

    A lateral film is never mirrored: it may face either side.
    """
    row, _, column = orientation.upper().partition("\\")
    along, down = row.strip()[:1], column.strip()[:1]
    if along not in _OPPOSITE or down not in _OPPOSITE or along in (down, _OPPOSITE[down]):
        return 0, False
    for turns in range(4):
        if down == "F":
            return turns, along == "R"
        along, down = down, _OPPOSITE[along]
    return 0, False


def short_side(rows: int, columns: int, spacing: Spacing | None, data: Dataset) -> float:
    """Return the short side of an image of this size after its pixels are square, in pixels."""
    aspect = _aspect(spacing, data)
    return min(rows, columns / aspect) if aspect > 1 else min(rows * aspect, columns)


def _aspect(spacing: Spacing | None, data: Dataset) -> float:
    """Return the height of a pixel over its width: by its spacing, else Pixel Aspect Ratio (C.7.6.3.1.7), else 1."""
    if spacing is not None:
        return spacing[0] / spacing[1]
    try:
        down, along = (float(value) for value in remark(data, "PixelAspectRatio").split("\\"))
        return down / along if down > 0 and along > 0 else 1.0
    except ValueError:
        return 1.0


def _squared(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Average along the side of the finer pixels, over the area that each new pixel covers."""
    rows, columns = pixels.shape
    rows, columns = (rows, max(1, round(columns / aspect))) if aspect > 1 else (max(1, round(rows * aspect)), columns)
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), (columns, rows), interpolation=cv2.INTER_AREA))
