"""The display pipeline of a DICOM radiograph, in the order of PS3.3 C.11 and PS3.4 N.2.

stored values -> modality LUT or rescale -> VOI LUT sequence, else the first window -> presentation LUT shape and
MONOCHROME1, one inversion for both -> padding black. Rows stay rows, nothing is flipped.

Every step is a function of the stored value, so integer images need one small table instead of arithmetic per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from medlt.data.dicom.luts import first_window, modality_lut, output_top, presentation, voi_lut

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
SPARSE, FILLED = 0.5, 0.8
"""Shares of the declared range that the data fill: see `_span`."""
NO_WINDOW = "no window"
SCALED = "no window, scaled to the data"
NARROW_LUT = "a VOI LUT that ends far below its declared bits was scaled to its largest entry"


@dataclass(frozen=True)
class DisplayLut:
    """The display of an image's stored values.

    `stored` [H,W] holds integers from `low` to `high` outside the padding, and `levels[i]` in [0,1] is the displayed
    value of low + i; or `levels` is None and `stored` is already float in [0,1]. `padding` is the range of stored
    values that mark padding. `window` names the source of the contrast; `notes` list irregularities and assumptions.
    """

    stored: np.ndarray
    levels: np.ndarray | None
    low: int
    padding: tuple[int, int] | None
    window: str
    notes: tuple[str, ...]

    def unit(self) -> np.ndarray:
        """Return the displayed image, float32 [H,W] in [0,1]."""
        if self.levels is None:
            return np.asarray(self.stored, np.float32)
        if (table := self.table(self.levels.astype(np.float32))) is not None:
            return np.asarray(table[code(self.stored)])
        shown = self.levels.astype(np.float32)[np.clip(self.stored - self.low, 0, len(self.levels) - 1)]
        return np.where(self._padded(), np.float32(0), shown)

    def uint16(self) -> np.ndarray:
        """Return the displayed image, uint16 [H,W]: [0,1] on 0..65535, rounded half up."""
        if self.levels is not None:
            table = self.table((self.levels * 65535 + 0.5).astype(np.uint16))
            if table is not None:
                return apply_lut(self.stored, table)
        return (self.unit().astype(np.float64) * 65535 + 0.5).astype(np.uint16)

    def table(self, levels: np.ndarray) -> np.ndarray | None:
        """Return `levels` by code, [256] or [65536], padding as 0; None if a stored value needs more than 16 bits."""
        if self.stored.dtype.itemsize > 2:
            return None
        size = 1 << 8 * self.stored.dtype.itemsize
        table = np.zeros(size, levels.dtype)
        table[np.arange(self.low, self.low + len(levels)) % size] = levels
        if self.padding is not None:
            first, last = max(self.padding[0], -size), min(self.padding[1], size - 1)
            table[np.arange(first, last + 1) % size] = 0
        return table

    def _padded(self) -> np.ndarray:
        if self.padding is None:
            return np.zeros(self.stored.shape, bool)
        return np.asarray((self.stored >= self.padding[0]) & (self.stored <= self.padding[1]))


def code(stored: np.ndarray) -> np.ndarray:
    """Return 8- or 16-bit integers as unsigned integers with the same bits."""
    kind = np.uint8 if stored.dtype.itemsize == 1 else np.uint16
    return np.asarray(stored.view(kind))


def apply_lut(stored: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return table[code(stored)] for uint8 and uint16 tables."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(code(stored)), table.reshape(1, -1)))


def apply_display(stored: np.ndarray, data: Dataset) -> DisplayLut:
    """Return the display of `stored` ([H,W] or [H,W,3]) under the tags of `data`; statistics ignore padding."""
    if stored.ndim == 3 or data.get("PhotometricInterpretation") == "PALETTE COLOR":
        return DisplayLut(_gray(stored, data), None, 0, None, "none", ("colour",))
    padding = padding_range(data)
    ends = extremes(stored, padding)
    if ends is None:
        return DisplayLut(np.zeros(stored.shape, np.float32), None, 0, None, "none", ("all padding",))
    low, high = ends
    span, window, notes = _span(low, high, data)
    if np.issubdtype(stored.dtype, np.integer) and int(high) - int(low) < 2**16:
        levels = _level(np.arange(int(low), int(high) + 1), data, span)
        return DisplayLut(stored, levels, int(low), padding, window, notes)
    values = _level(np.clip(stored, low, high), data, span)
    if padding is not None:
        values[(stored >= padding[0]) & (stored <= padding[1])] = 0
    return DisplayLut(values.astype(np.float32), None, 0, None, window, notes)


def _level(values: np.ndarray, data: Dataset, span: tuple[float, float]) -> np.ndarray:
    """Return displayed values, float64 in [0,1], for stored values of any shape."""
    return np.asarray(np.clip(presentation(voi_lut(modality_lut(values, data), data, span), data), 0, 1))


def extremes(stored: np.ndarray, padding: tuple[int, int] | None) -> tuple[np.generic, np.generic] | None:
    """Return the lowest and highest stored value outside the padding; None if all is padding."""
    if padding is not None:
        stored = stored[(stored < padding[0]) | (stored > padding[1])]
    return (stored.min(), stored.max()) if stored.size else None


def _span(low: np.generic, high: np.generic, data: Dataset) -> tuple[tuple[float, float], str, tuple[str, ...]]:
    """Return the values of black and white, the window's name, and notes, for a file without VOI.

    Data that fill `FILLED` of the declared range or more have the declared one, the standard's identity. Data that fill
    `SPARSE` or less (16 bits declared, 12 used) have their own, from minimum to maximum outside the padding, because
    they would be dark. In between the ends go linearly from one to the other, so the rule is continuous in the data.
    """
    if "VOILUTSequence" in data and data.VOILUTSequence:
        narrow = output_top(data.VOILUTSequence[0])[1]
        return (0.0, 1.0), "VOI LUT Sequence", (NARROW_LUT,) if narrow else ()
    if (window := first_window(data)) is not None:
        function = str(data.get("VOILUTFunction") or "LINEAR")
        count = np.size(data.WindowCenter)
        more = f", the first of {count}" if count > 1 else ""
        return (0.0, 1.0), f"{function} centre {window[0]:g} width {window[1]:g}{more}", ()
    ends = np.array([low, high], np.float64)
    if data.get("ModalityLUTSequence") and ends[1] - ends[0] < 2**16:  # need not be monotonic
        ends = np.arange(ends[0], ends[1] + 1)
    used = modality_lut(ends, data)
    own = np.array([used.min(), used.max()])
    declared = _declared(data)
    filled = 0.0 if declared is None else float(np.ptp(own) / np.ptp(declared))
    weight = float(np.clip((filled - SPARSE) / (FILLED - SPARSE), 0, 1))
    black, white = (own if declared is None else own + weight * (declared - own)).tolist()
    return (black, white), f"range {black:g} to {white:g}", (NO_WINDOW if weight == 1 else SCALED,)


def _declared(data: Dataset) -> np.ndarray | None:
    """Return the ends of the declared range in the modality's unit; None for float pixels, which declare none."""
    if "PixelData" not in data:
        return None
    if sequence := data.get("ModalityLUTSequence"):
        return np.array([0.0, output_top(sequence[0])[0]])
    bits = int(data.BitsStored)
    first = -(2 ** (bits - 1)) if data.PixelRepresentation else 0
    return np.sort(modality_lut(np.array([first, first + 2**bits - 1], np.float64), data))


def padding_range(data: Dataset) -> tuple[int, int] | None:
    """Return the stored values from Pixel Padding Value to its range limit (C.7.5.1.1.2), both included, or None."""
    value = data.get("PixelPaddingValue")
    if value is None or "PixelData" not in data:
        return None
    limit = data.get("PixelPaddingRangeLimit")
    ends = [_signed(int(v), data) for v in (value, value if limit is None else limit)]
    return max(min(ends), -(2**31)), min(max(ends), 2**32)


def _signed(value: int, data: Dataset) -> int:
    """Return a padding value as signed if it was written unsigned into a signed image."""
    bits = int(data.BitsAllocated)
    return value - 2**bits if data.PixelRepresentation and value >= 2 ** (bits - 1) else value


def _gray(stored: np.ndarray, data: Dataset) -> np.ndarray:
    """Return the luminance of a colour image, to which grayscale display tags do not apply."""
    if stored.ndim == 2:
        stored = apply_color_lut(stored, data)
        top = np.iinfo(stored.dtype).max
    else:
        top = 2 ** int(data.BitsStored) - 1
    return np.asarray(np.clip(stored[..., :3] @ _LUMINANCE / top, 0, 1), np.float32)
