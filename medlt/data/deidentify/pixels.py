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
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from medlt.data.deidentify.text import Box, Detector, painted
from medlt.data.dicom import guard
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


def inspect(data: Dataset, clean: bool, detector: Detector | None) -> PixelDecision:
    """Return the decision on the pixels of `data`, which is not changed; only the first frame can be inspected."""
    risk = header_risk(data)
    declared = "BurnedInAnnotation is YES, and nothing was cleaned" if risk.header == 100 else None
    if not any(name in data for name in PIXEL_ATTRIBUTES):
        return PixelDecision(risk, None)
    try:
        values = _readable(data)
    except InputError as error:
        return PixelDecision(risk, str(error))
    if detector is None:
        return PixelDecision(risk, declared, values)
    boxes = tuple(detector(values))
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
    dark = values.max() if data.get("PhotometricInterpretation") == "MONOCHROME1" else values.min()
    boxes = risk.detected
    for _ in range(2):
        values = painted(values, boxes, int(dark))
        boxes = tuple(detector(values))
        if not boxes:
            return PixelDecision(replace(risk, remaining=()), None, values)
    reason = f"{len(boxes)} box(es) still look like text after cleaning"
    return PixelDecision(replace(risk, remaining=boxes), reason, values)


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
