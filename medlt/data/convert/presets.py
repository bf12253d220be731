"""From stored values to the pixels of an output file: four recipes, and an area-averaged size.

`viewer` shows the image as DICOM says (PS3.3 C.11, see medlt.data.dicom.display). `mimic-cxr-jpg` and `chexpert` are
the published recipes of those data sets, which use neither rescale nor VOI. `linear16` keeps the modality's values on
a recorded scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from pydicom.dataset import Dataset

from medlt.data.dicom.display import Shown, extremes, looked_up, padding_range, shown
from medlt.data.dicom.guard import Unreadable
from medlt.data.dicom.luts import inverted, modality_lut


@dataclass(frozen=True)
class Rendered:
    """pixels uint8 or uint16 [h,w]. `window` says what decided the contrast. Under linear16 a pixel p stands for the
    modality's value offset + scale * p; elsewhere both are None."""

    pixels: np.ndarray
    window: str
    notes: tuple[str, ...] = ()
    scale: float | None = None
    offset: float | None = None


Preset = Callable[[np.ndarray, Dataset], Rendered]


def viewer(stored: np.ndarray, data: Dataset) -> Rendered:
    """The standard's order, scaled to the VOI output range, in 16 bits."""
    seen = shown(stored, data)
    flat = seen.levels is not None and len(seen.levels) > 1 and np.ptp(seen.levels) == 0
    return Rendered(seen.uint16(), seen.window, seen.notes + (("no contrast under its window",) if flat else ()))


def mimic_cxr_jpg(stored: np.ndarray, data: Dataset) -> Rendered:
    """Step for step what the authors of MIMIC-CXR-JPG did (Johnson et al. 2019, arXiv 1901.07042, section 2.2).

    Subtract the minimum, divide by the maximum, times 255, truncate; invert MONOCHROME1; histogram equalisation.
    A constant image, which the recipe divides by zero, becomes 0. 8 bits only.
    """
    _plain(stored)
    low, high = int(stored.min()), int(stored.max())
    values = np.arange(low, high + 1) - low
    levels = (values / max(high - low, 1) * 255).astype(np.uint8)
    return _equalised(stored, low, levels, data)


def chexpert(stored: np.ndarray, data: Dataset) -> Rendered:
    """As CheXpert's images were made: |255 / max * x| rounded to 8 bits, inverted if MONOCHROME1, equalised."""
    _plain(stored)
    low, high = int(stored.min()), int(stored.max())
    values = np.arange(low, high + 1, dtype=np.float64).reshape(1, -1)
    levels = cv2.convertScaleAbs(values, alpha=255 / high if high else 0.0).ravel()
    return _equalised(stored, low, levels, data)


def linear16(stored: np.ndarray, data: Dataset) -> Rendered:
    """The modality's values from lowest to highest on 0..65535, MONOCHROME1 inverted; scale and offset recorded."""
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
    seen = Shown(stored, levels, int(ends[0]), padding, "", ()) if whole else Shown(levels, None, 0, None, "", ())
    return Rendered(seen.uint16(), f"linear {low:g} to {high:g}", (), scale, offset)


PRESETS: dict[str, Preset] = {
    "viewer": viewer,
    "mimic-cxr-jpg": mimic_cxr_jpg,
    "chexpert": chexpert,
    "linear16": linear16,
}


def _plain(stored: np.ndarray) -> None:
    """These recipes are for one grayscale frame."""
    if stored.ndim != 2:
        raise Unreadable("colour", "a colour image, which this preset is not for; use --preset viewer")
    if stored.dtype.itemsize > 2 and np.issubdtype(stored.dtype, np.integer) and np.ptp(stored) >= 2**16:
        raise Unreadable("too_deep", "more than 65,536 grey levels, which this preset is not for; use --preset viewer")


def _equalised(stored: np.ndarray, low: int, levels: np.ndarray, data: Dataset) -> Rendered:
    """`levels` looked up, inverted if MONOCHROME1, then OpenCV's histogram equalisation."""
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        levels = 255 - levels
    table = Shown(stored, levels, low, None, "", ()).table(levels)
    pixels = levels[stored - low] if table is None else looked_up(stored, table)
    return Rendered(cv2.equalizeHist(pixels), "none")


def resized(rendered: Rendered, short_side: int | None) -> Rendered:
    """Area-averaged so that the short side is `short_side`; an image that is smaller stays as it is, with a note."""
    rows, columns = rendered.pixels.shape
    if short_side is None or min(rows, columns) == short_side:
        return rendered
    if min(rows, columns) < short_side:
        return replace(rendered, notes=(*rendered.notes, "smaller than the size asked for"))
    scale = short_side / min(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return replace(rendered, pixels=cv2.resize(rendered.pixels, size, interpolation=cv2.INTER_AREA))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint16 of full range to the nearest of 256 levels; 257 sixteen-bit levels make one, so there are no ties."""
    return np.asarray(cv2.convertScaleAbs(pixels, alpha=1 / 257))
