"""Presets that turn stored values into the pixels of an output file, and area-averaged resizing.

`viewer` displays the image by the DICOM standard (PS3.3 C.11, see medlt.data.dicom.display). `mimic-cxr-jpg` and
`chexpert` are the published procedures of those data sets, which use neither rescale nor VOI. `linear16` keeps the
modality's values on a recorded scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from pydicom.dataset import Dataset

from medlt.data.dicom.display import DisplayLut, apply_display, apply_lut, extremes, padding_range
from medlt.data.dicom.guard import Unreadable
from medlt.data.dicom.luts import inverted, modality_lut


@dataclass(frozen=True)
class Rendered:
    """Rendered `pixels`, uint8 or uint16 [h,w]; `window` names the source of the contrast.

    With linear16, a pixel p is the modality's value offset + scale * p; with other presets both are None.
    """

    pixels: np.ndarray
    window: str
    notes: tuple[str, ...] = ()
    scale: float | None = None
    offset: float | None = None


Preset = Callable[[np.ndarray, Dataset], Rendered]


def viewer(stored: np.ndarray, data: Dataset) -> Rendered:
    """Render by the standard's display pipeline, scaled to the VOI output range, in 16 bits."""
    display = apply_display(stored, data)
    flat = display.levels is not None and len(display.levels) > 1 and np.ptp(display.levels) == 0
    notes = (*display.notes, "no contrast under its window") if flat else display.notes
    return Rendered(display.uint16(), display.window, notes)


def mimic_cxr_jpg(stored: np.ndarray, data: Dataset) -> Rendered:
    """Render with the steps of MIMIC-CXR-JPG (Johnson et al. 2019, arXiv 1901.07042, section 2.2).

    Subtract the minimum, divide by the maximum, times 255, truncate; invert MONOCHROME1; histogram equalisation.
    A constant image, for which this divides by zero, becomes 0. 8 bits only.
    """
    _plain(stored)
    low, high = int(stored.min()), int(stored.max())
    values = np.arange(low, high + 1) - low
    levels = (values / max(high - low, 1) * 255).astype(np.uint8)
    return _equalised(stored, low, levels, data)


def chexpert(stored: np.ndarray, data: Dataset) -> Rendered:
    """Render with the steps of CheXpert: |255 / max * x| rounded to 8 bits, inverted if MONOCHROME1, equalised."""
    _plain(stored)
    low, high = int(stored.min()), int(stored.max())
    values = np.arange(low, high + 1, dtype=np.float64).reshape(1, -1)
    levels = cv2.convertScaleAbs(values, alpha=255 / high if high else 0.0).ravel()
    return _equalised(stored, low, levels, data)


def linear16(stored: np.ndarray, data: Dataset) -> Rendered:
    """Render the modality's values, lowest to highest, on 0..65535, MONOCHROME1 inverted; record scale and offset."""
    _plain(stored)
    padding = padding_range(data)
    ends = extremes(stored, padding)
    if ends is None:
        return Rendered(np.zeros(stored.shape, np.uint16), "none", ("all padding",), 1.0, 0.0)
    whole = np.issubdtype(stored.dtype, np.integer)
    values = modality_lut(np.arange(int(ends[0]), int(ends[1]) + 1) if whole else stored, data)
    low, high = float(values.min()), float(values.max())
    step = (high - low) / 65535 or 1.0
    offset, scale = (high, -step) if inverted(data) else (low, step)
    levels = (high - values if inverted(data) else values - low) / (high - low or 1.0)
    display = (
        DisplayLut(stored, levels, int(ends[0]), padding, "", ())
        if whole
        else DisplayLut(levels, None, 0, None, "", ())
    )
    return Rendered(display.uint16(), f"linear {low:g} to {high:g}", (), scale, offset)


PRESETS: dict[str, Preset] = {
    "viewer": viewer,
    "mimic-cxr-jpg": mimic_cxr_jpg,
    "chexpert": chexpert,
    "linear16": linear16,
}


def _plain(stored: np.ndarray) -> None:
    """Raise Unreadable unless the image has one grayscale plane of at most 65,536 levels."""
    if stored.ndim != 2:
        raise Unreadable("colour", "this preset does not support colour images; use --preset viewer")
    if stored.dtype.itemsize > 2 and np.issubdtype(stored.dtype, np.integer) and np.ptp(stored) >= 2**16:
        raise Unreadable("too_deep", "this preset does not support more than 65,536 levels; use --preset viewer")


def _equalised(stored: np.ndarray, low: int, levels: np.ndarray, data: Dataset) -> Rendered:
    """Apply `levels`, invert if MONOCHROME1, then apply OpenCV's histogram equalisation."""
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        levels = 255 - levels
    table = DisplayLut(stored, levels, low, None, "", ()).table(levels)
    pixels = levels[stored - low] if table is None else apply_lut(stored, table)
    return Rendered(cv2.equalizeHist(pixels), "none")


def resized(rendered: Rendered, short_side: int | None) -> Rendered:
    """Average areas so that the short side is `short_side`; a smaller image is unchanged and gets a note."""
    rows, columns = rendered.pixels.shape
    if short_side is None or min(rows, columns) == short_side:
        return rendered
    if min(rows, columns) < short_side:
        return replace(rendered, notes=(*rendered.notes, "smaller than the requested size"))
    scale = short_side / min(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return replace(rendered, pixels=cv2.resize(rendered.pixels, size, interpolation=cv2.INTER_AREA))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Round full-range uint16 to the nearest of 256 levels; each covers 257 values, so there are no ties."""
    return np.asarray(cv2.convertScaleAbs(pixels, alpha=1 / 257))
