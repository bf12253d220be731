"""A DICOM radiograph as it is meant to be seen, in the order of PS3.3 C.11 and PS3.4 N.2.

stored values -> modality LUT or rescale -> VOI LUT sequence, else the first window -> presentation LUT shape and
MONOCHROME1, one inversion for both -> padding black. Rows stay rows, nothing is flipped.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut

from medlt.data.dicom.guard import Unreadable, open_dicom, stored_values

__all__ = ["Radiograph", "Unreadable", "modality_lut", "presentation", "read_dicom", "voi_lut"]

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_UNUSED_SHARE = 0.25


@dataclass(frozen=True)
class Radiograph:
    """pixels float32 [H,W] in [0,1], upright, bright means dense; spacing is (row, column) in mm, None if untold.

    `frames` is what the file claims; only the first is read. `notes` say what was odd or assumed. Text is "" if absent.
    """

    pixels: np.ndarray
    uid: str
    patient_id: str
    modality: str
    body_part: str
    view: str
    photometric: str
    transfer_syntax: str
    bits_stored: int
    spacing: tuple[float, float] | None
    frames: int
    notes: tuple[str, ...]


def read_dicom(path: Path) -> Radiograph:
    """Read one file. Raises Unreadable (an InputError with a reason code) on anything that is no image."""
    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hospital files break value rules everywhere; what matters is in `notes`
        data, notes = open_dicom(path)
        stored = stored_values(data, path)
        try:
            pixels, more = _displayed(stored, data)
            return _described(data, pixels, notes + more)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            told = (str(error) or type(error).__name__).splitlines()[0]
            raise Unreadable("corrupt", f"{path}: unusable display tags ({told}); export the file again") from None


def modality_lut(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Stored values to the modality's unit, float64: Modality LUT Sequence, else slope and intercept (C.11.1)."""
    if sequence := header.get("ModalityLUTSequence"):
        return _looked_up(values, sequence[0])
    slope = header.get("RescaleSlope")
    scale = 1.0 if slope is None or float(slope) == 0 else float(slope)
    return np.asarray(values * scale + float(header.get("RescaleIntercept") or 0))


def voi_lut(values: np.ndarray, header: Dataset, span: tuple[float, float]) -> np.ndarray:
    """Modality values to [0,1], float64: VOI LUT Sequence, else the first window, else `span` as it is (C.11.2)."""
    if sequence := header.get("VOILUTSequence"):
        return _looked_up(values, sequence[0]) / _largest(sequence[0])
    if (window := _first_window(header)) is not None:
        return _windowed(values, *window, str(header.get("VOILUTFunction") or "LINEAR"))
    low, high = span
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values, dtype=np.float64)


def presentation(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Invert [0,1] once if told to: INVERSE and MONOCHROME1 say the same thing (C.8.11.3.1), so never twice."""
    by_shape = header.get("PresentationLUTShape") == "INVERSE"
    by_photometric = header.get("PhotometricInterpretation") == "MONOCHROME1"
    return 1 - values if by_shape or by_photometric else values


def _displayed(stored: np.ndarray, data: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """float32 [H,W] in [0,1] and notes; padding is left out of the statistics and comes out black."""
    if stored.ndim == 3 or data.PhotometricInterpretation == "PALETTE COLOR":
        return _gray(stored, data), ("colour",)
    padding = _padding(stored, data)
    kept = stored if padding is None else stored[~padding]
    if not kept.size:
        return np.zeros(stored.shape, np.float32), ("all padding",)
    low, high = kept.min(), kept.max()
    span, notes = _span(low, high, data)
    if padding is None:
        return _rendered(stored, low, high, data, span), notes
    pixels = _rendered(np.clip(stored, low, high), low, high, data, span)
    pixels[padding] = 0
    return pixels, notes


def _rendered(
    values: np.ndarray, low: np.generic, high: np.generic, data: Dataset, span: tuple[float, float]
) -> np.ndarray:
    """Every step works pixel by pixel, so integers from `low` to `high` go through one table."""
    table = np.issubdtype(values.dtype, np.integer) and int(high) - int(low) < 2**16
    levels = np.arange(int(low), int(high) + 1) if table else values
    shown = presentation(voi_lut(modality_lut(levels, data), data, span), data)
    shown = np.clip(shown, 0, 1).astype(np.float32)
    return np.asarray(shown[values.astype(np.int32) - int(low)] if table else shown)


def _span(low: np.generic, high: np.generic, data: Dataset) -> tuple[tuple[float, float], tuple[str, ...]]:
    """What black and white are when the file has no VOI: its declared range, the standard's identity.

    A file that declares 16 bits and uses 12 would be black, so data on less than a quarter of it span themselves.
    """
    if "VOILUTSequence" in data or _first_window(data) is not None:
        return (0.0, 1.0), ()
    used = modality_lut(np.array([low, high], np.float64), data)
    declared = _declared(data)
    if declared is None or np.ptp(used) < _UNUSED_SHARE * np.ptp(declared):
        return (float(used.min()), float(used.max())), ("no window, scaled to the data",)
    return (float(declared.min()), float(declared.max())), ("no window",)


def _declared(data: Dataset) -> np.ndarray | None:
    """Ends of the range in the modality's unit; None for float pixels, which declare none."""
    if "PixelData" not in data:
        return None
    if sequence := data.get("ModalityLUTSequence"):
        return np.array([0.0, _largest(sequence[0])])
    bits = int(data.BitsStored)
    first = -(2 ** (bits - 1)) if data.PixelRepresentation else 0
    return modality_lut(np.array([first, first + 2**bits - 1], np.float64), data)


def _padding(stored: np.ndarray, data: Dataset) -> np.ndarray | None:
    """bool [H,W]: stored values from Pixel Padding Value to its range limit (C.7.5.1.1.2), both included."""
    value = data.get("PixelPaddingValue")
    if value is None or "PixelData" not in data:
        return None
    limit = data.get("PixelPaddingRangeLimit")
    ends = [_signed(int(v), data) for v in (value, value if limit is None else limit)]
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _signed(value: int, data: Dataset) -> int:
    """A padding value written as unsigned into a signed image, read as what was meant."""
    bits = int(data.BitsAllocated)
    return value - 2**bits if data.PixelRepresentation and value >= 2 ** (bits - 1) else value


def _first_window(header: Dataset) -> tuple[float, float] | None:
    """(centre, width) of the first pair; None if there is none or its width is not positive."""
    centre, width = (_first(header.get(k)) for k in ("WindowCenter", "WindowWidth"))
    return None if centre is None or width is None or width <= 0 else (centre, width)


def _first(value: object) -> float | None:
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return None if value in (None, "") else float(str(value))


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The three functions of C.11.2.1.2 and C.11.2.1.3 with output range [0,1]."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return np.where(values > centre - 0.5, 1.0, 0.0)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _looked_up(values: np.ndarray, item: Dataset) -> np.ndarray:
    """A LUT item of C.11.1.1 or C.11.2.1.1: values before the first entry take it, values past the last take that."""
    table = _entries(item)
    first = int(item.LUTDescriptor[1])
    if first >= 2**15 and values.min() < 0:
        first -= 2**16
    return np.asarray(table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)].astype(np.float64))


def _entries(item: Dataset) -> np.ndarray:
    """LUT Data as unsigned integers, 8-bit entries unpacked where two share a word."""
    count = (int(item.LUTDescriptor[0]) & 0xFFFF) or 2**16
    data = item.LUTData
    if not isinstance(data, bytes):
        data = (np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF).astype("<u2").tobytes()
    entries = np.frombuffer(data, np.uint8 if len(data) < 2 * count else "<u2")[:count]
    if not len(entries):
        raise ValueError("empty look-up table")
    return entries


def _largest(item: Dataset) -> float:
    """The top of a LUT's output range: its declared bits, or its largest entry if that is beyond."""
    return float(max(2 ** min(int(item.LUTDescriptor[2]), 16) - 1, int(_entries(item).max()), 1))


def _gray(stored: np.ndarray, data: Dataset) -> np.ndarray:
    """Luminance of a colour image; grayscale display tags do not apply to it."""
    if stored.ndim == 2:
        stored = apply_color_lut(stored, data)
        top = np.iinfo(stored.dtype).max
    else:
        top = 2 ** int(data.BitsStored) - 1
    return np.asarray(np.clip(stored[..., :3] @ _LUMINANCE / top, 0, 1), np.float32)


def _described(data: Dataset, pixels: np.ndarray, notes: tuple[str, ...]) -> Radiograph:
    return Radiograph(
        pixels=np.ascontiguousarray(pixels),
        uid=_text(data, "SOPInstanceUID"),
        patient_id=_text(data, "PatientID"),
        modality=_text(data, "Modality"),
        body_part=_text(data, "BodyPartExamined"),
        view=_text(data, "ViewPosition"),
        photometric=_text(data, "PhotometricInterpretation"),
        transfer_syntax=str(data.file_meta.TransferSyntaxUID),
        bits_stored=int(data.get("BitsStored") or 32),
        spacing=_spacing(data),
        frames=int(data.get("NumberOfFrames") or 1),
        notes=notes,
    )


def _text(data: Dataset, keyword: str) -> str:
    return str(data.get(keyword) or "").strip()


def _spacing(data: Dataset) -> tuple[float, float] | None:
    """Pixel Spacing, else Imager Pixel Spacing (at the detector); None unless two positive numbers."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        value = data.get(keyword)
        if value is not None and len(value) == 2 and min(float(v) for v in value) > 0:
            return float(value[0]), float(value[1])
    return None
