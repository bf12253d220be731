"""Decides whether pixels may be released, from the header, a text detector, and a second detection after cleaning.

Pixels are never copied. What may be released is decoded to stored values and written again from those alone: nothing is
left of comments and application markers in a compressed stream, of bytes behind it, of a second stream, or of the bits
beside the stored ones. Pixels that cannot be decoded are held back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import compress
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from medlt.data.deidentify.text import Box, Detector, grey_range, painted
from medlt.data.dicom import guard
from medlt.data.dicom.attributes import items
from medlt.data.dicom.display import DisplayLut, apply_display
from medlt.data.dicom.displaytags import repair_display
from medlt.data.dicom.luts import inverted
from medlt.types import InputError

PIXEL_ATTRIBUTES = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ULTRASOUND = ("1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1")
_SCANNER = re.compile(r"scan|digiti[sz]|vidar|howtek|frame ?grab", re.IGNORECASE)


@dataclass(frozen=True)
class Risk:
    """Risk of burned-in text: `header` from 0 (no sign) to 100 (declared), with `reasons`.

    `inspected`: whether a detector ran; `detected` and `remaining`: text boxes before and after cleaning.
    """

    header: int
    reasons: tuple[str, ...]
    inspected: bool = False
    detected: tuple[Box, ...] = ()
    remaining: tuple[Box, ...] = ()


@dataclass(frozen=True)
class PixelDecision:
    """The risk, why the pixels must not be released (None: they may), and the stored values to write, None if there
    are none or they cannot be decoded.
    """

    risk: Risk
    quarantine: str | None
    values: np.ndarray | None = None


def header_risk(data: Dataset) -> Risk:
    """Return the risk of burned-in text by the attributes alone; the weights are estimates, only YES decides."""
    maker = f"{data.get('Manufacturer', '')} {data.get('ManufacturerModelName', '')}"
    hints = [
        (100, str(data.get("BurnedInAnnotation", "")).strip().upper() == "YES", "BurnedInAnnotation is YES"),
        (20, data.get("RecognizableVisualFeatures") == "YES", "RecognizableVisualFeatures is YES"),
        (40, str(data.get("SOPClassUID", "")).startswith(_CAPTURE), "secondary capture"),
        (40, str(data.get("SOPClassUID", "")) in _ULTRASOUND or data.get("Modality") == "US", "ultrasound"),
        (30, data.get("ConversionType") in ("DF", "DV", "SD", "SI", "WSD", "SYN"), "converted or captured"),
        (20, "SECONDARY" in str(data.get("ImageType", "")), "ImageType SECONDARY"),
        (20, bool(_SCANNER.search(maker)), "film scanner or digitizer"),
    ]
    score = sum(weight for weight, holds, _ in hints if holds)
    reasons = tuple(text for _, holds, text in hints if holds)
    return Risk(100 if hints[0][1] else min(99, score), reasons)


def seen(values: np.ndarray, data: Dataset, detector: Detector) -> tuple[Box, ...]:
    """Return the boxes that the detector reports in the stored values or in their display under the tags of `data`.

    Text may be faint in one and plain in the other, whose pixels have the same places. A display that only scales the
    values is not examined, as a detector sees the same in it. Raises Unreadable on display tags that cannot be applied.
    """
    rendering = _rendering(values, data)
    views = [values] if rendering is None else [values, rendering]
    return tuple(sorted({box for view in views for box in detector(view)}))


def inspect(data: Dataset, clean: bool, detector: Detector | None) -> PixelDecision:
    """Return the decision on the pixels of `data`, which is not changed; only the first frame can be inspected."""
    risk = header_risk(data)
    declared = "BurnedInAnnotation is YES, and nothing was cleaned" if risk.header == 100 else None
    if not any(name in data for name in PIXEL_ATTRIBUTES):
        return PixelDecision(risk, None)
    values = None
    try:
        values = _readable(data)
        boxes = () if detector is None else seen(values, data, detector)
    except InputError as error:
        return PixelDecision(risk, str(error), values)
    if detector is None:
        return PixelDecision(risk, declared, values)
    risk = replace(risk, inspected=True, detected=boxes, remaining=boxes)
    if clean and boxes:
        return _cleaned(data, values, risk, detector)
    if boxes:
        return PixelDecision(
            risk, f"{len(boxes)} box(es) that look like text; add clean-pixel to paint them over", values
        )
    return PixelDecision(risk, declared, values)


def _cleaned(data: Dataset, values: np.ndarray, risk: Risk, detector: Detector) -> PixelDecision:
    """Paint over the boxes until the detector reports none, at most twice: the first pass may reveal further text."""
    dark = values.max() if values.ndim == 2 and inverted(data) else values.min()
    boxes = risk.detected
    for _ in range(2):
        values = painted(values, boxes, int(dark))
        boxes = seen(values, data, detector)
        if not boxes:
            return PixelDecision(replace(risk, remaining=()), None, values)
    reason = f"{len(boxes)} box(es) still look like text after cleaning"
    return PixelDecision(replace(risk, remaining=boxes), reason, values)


def _rendering(values: np.ndarray, data: Dataset) -> np.ndarray | None:
    """Return the displayed image, uint16 [H,W]; None for colour, and where the display only scales the values."""
    if values.ndim == 3:
        return None
    try:
        display = apply_display(values, _repaired(data))
        return None if _is_linear(display) else display.uint16()
    except MemoryError:
        raise
    except Exception:  # hostile bytes may raise any exception, and its text may quote them
        raise guard.Unreadable("unchecked", "its display tags cannot be applied; export the file again") from None


def _repaired(data: Dataset) -> Dataset:
    """Return a data set with the elements of `data` and repaired display tags; `data` is not changed."""
    own = _copied(data)
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        if tables := items(data, keyword):
            own.add_new(keyword, "SQ", Sequence([_copied(item) for item in tables]))
    repair_display(own)
    return own


def _copied(data: Dataset) -> Dataset:
    copy = Dataset()
    copy.update({tag: data.get_item(tag) for tag in data.keys()})
    return copy


def _is_linear(display: DisplayLut) -> bool:
    """Return whether a detector that scales an image to its range gets the same levels, or their negative, of both."""
    if display.levels is None or display.padding is not None:
        return False
    low, high = (int(end) - display.low for end in grey_range(display.stored))
    used, steps = display.levels[low : high + 1], np.diff(display.levels)
    straight = np.linspace(used[0], used[-1], len(used))
    rises = float(used[-1] - used[0])
    same_sign = bool((steps * rises >= 0).all())
    return same_sign and bool(np.abs(used - straight).max() <= abs(rises) / 255)


def _readable(data: Dataset) -> np.ndarray:
    """Return stored values that can be inspected and rewritten. Raises Unreadable (an InputError) otherwise."""
    kind, frames, bits = (data.get(k) for k in ("PhotometricInterpretation", "NumberOfFrames", "BitsAllocated"))
    if frames and frames != 1:
        raise guard.Unreadable("unchecked", f"{frames} frames, and only the first can be inspected")
    if kind == "PALETTE COLOR" or "PixelData" not in data or bits not in (8, 16):
        raise guard.Unreadable("unchecked", f"{kind or 'unknown'} pixels of {bits} bits cannot be inspected")
    values = guard.stored_values(data, Path("pixels"))
    if values.ndim != 2 and values.shape[2:] != (3,):
        raise guard.Unreadable("unchecked", f"pixels of shape {values.shape} cannot be inspected")
    return values


def rebuild(data: Dataset, values: np.ndarray) -> None:
    """Write `values`, and nothing else of the pixels, into `data`, in place.

    They have only their stored bits, aligned to bit 0. A compressed source becomes JPEG-LS Lossless; any other, signed
    values and single bits, which JPEG-LS does not know, become Explicit VR Little Endian (PS3.5 A.2, A.4.3).
    """
    encodable = not data.get("PixelRepresentation") and int(data.BitsStored) > 1
    compressed = data.file_meta.TransferSyntaxUID.is_encapsulated and encodable
    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelDataProviderURL"):
        data.pop(name, None)
    if values.ndim == 3:
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", 0
    data.BitsAllocated = values.dtype.itemsize * 8
    data.HighBit = int(data.BitsStored) - 1
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    data.add_new("PixelData", "OB" if data.BitsAllocated == 8 else "OW", raw + b"\0" * (len(raw) % 2))
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if compressed:
        compress(data, JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)


def trimmed(data: Dataset) -> None:
    """Cut uncompressed pixel data to the length in the header, as more bytes may hide anything. In place."""
    if "PixelData" not in data or data.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    try:
        sides = [int(data.get(k) or 1) for k in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")]
        size = (int(np.prod(np.array(sides, dtype=object))) * int(data.BitsAllocated) + 7) // 8
    except (AttributeError, TypeError, ValueError):
        return
    if str(data.get("PhotometricInterpretation", "")).endswith("422"):
        size = size * 2 // 3
    element = data["PixelData"]
    if len(element.value) > size + size % 2:
        element.value = element.value[:size] + b"\0" * (size % 2)
