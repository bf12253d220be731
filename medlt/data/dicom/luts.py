"""The look-up tables and functions of a radiograph's display: PS3.3 C.11.1 and C.11.2."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

_UNUSED = 4  # two bits


def modality_lut(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Return values in the modality's unit, float64: Modality LUT Sequence, else slope and intercept (C.11.1)."""
    if sequence := header.get("ModalityLUTSequence"):
        return _through_lut(values, sequence[0])
    slope = header.get("RescaleSlope")
    scale = 1.0 if slope is None or float(slope) == 0 else float(slope)
    return np.asarray(values * scale + float(header.get("RescaleIntercept") or 0))


def voi_lut(values: np.ndarray, header: Dataset, span: tuple[float, float]) -> np.ndarray:
    """Map modality values to [0,1], float64: VOI LUT Sequence, else the first window, else `span` (C.11.2)."""
    if sequence := header.get("VOILUTSequence"):
        return _through_lut(values, sequence[0]) / output_top(sequence[0])[0]
    if (window := first_window(header)) is not None:
        return _windowed(values, *window, str(header.get("VOILUTFunction") or "LINEAR"))
    low, high = span
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values, dtype=np.float64)


def presentation(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Return values in [0,1], inverted if the header requires it (see `inverted`)."""
    return 1 - values if inverted(header) else values


def inverted(header: Dataset) -> bool:
    """Return whether the display is inverted. INVERSE and MONOCHROME1 mean the same (C.8.11.3.1): both invert once."""
    by_shape = header.get("PresentationLUTShape") == "INVERSE"
    return bool(by_shape or header.get("PhotometricInterpretation") == "MONOCHROME1")


def first_window(header: Dataset) -> tuple[float, float] | None:
    """Return (centre, width) of the first window; None if there is none or its width is not positive."""
    centre, width = (_first(header.get(k)) for k in ("WindowCenter", "WindowWidth"))
    return None if centre is None or width is None or width <= 0 else (centre, width)


def _first(value: object) -> float | None:
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return None if value in (None, "") else float(str(value))


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Apply one of the three functions of C.11.2.1.2 and C.11.2.1.3, output range [0,1]."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return np.where(values > centre - 0.5, 1.0, 0.0)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _through_lut(values: np.ndarray, item: Dataset) -> np.ndarray:
    """Apply a LUT item of C.11.1.1 or C.11.2.1.1; values outside the table take its first or last entry."""
    table = _entries(item)
    first = int(item.LUTDescriptor[1])
    if first >= 2**15 and values.min() < 0:
        first -= 2**16
    return np.asarray(table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)].astype(np.float64))


def _entries(item: Dataset) -> np.ndarray:
    """Return LUT Data as unsigned integers, 8-bit entries unpacked where two share a word."""
    count = (int(item.LUTDescriptor[0]) & 0xFFFF) or 2**16
    data = item.LUTData
    if not isinstance(data, bytes):
        data = (np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF).astype("<u2").tobytes()
    entries = np.frombuffer(data, np.uint8 if len(data) < 2 * count else "<u2")[:count]
    if not len(entries):
        raise ValueError("empty look-up table")
    return entries


def output_top(item: Dataset) -> tuple[float, bool]:
    """Return the LUT output that is white, and whether it is far below the declared bits (C.11.2.1.1).

    It is the top of the declared bits, or the largest entry if that is larger. Some devices declare 16 bits and fill
    12: if two or more of the declared bits are never used, it is the largest entry too.
    """
    entry, declared = int(_entries(item).max()), 2 ** min(int(item.LUTDescriptor[2]), 16) - 1
    narrow = 0 < entry and _UNUSED * (entry + 1) <= declared + 1
    return float(entry if narrow else max(declared, entry, 1)), narrow
