"""May these pixels be released? What the header says, what the detector sees, and what is left after cleaning."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medlt.data.deidentify.text import Box, Detector, painted
from medlt.data.dicom import guard
from medlt.types import InputError

PIXEL_ATTRIBUTES = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ULTRASOUND = ("1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1")
_SCANNER = re.compile(r"scan|digiti[sz]|vidar|howtek|frame ?grab", re.IGNORECASE)


@dataclass(frozen=True)
class Risk:
    """Burned-in text: `header` 0 (nothing hints at it) to 100 (declared) with `reasons`; `found`, `left`: boxes before
    and after cleaning; `looked` tells whether a detector saw the pixels at all."""

    header: int
    reasons: tuple[str, ...]
    looked: bool = False
    found: tuple[Box, ...] = ()
    left: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The risk, why the pixels must be held back (None: they need not), and cleaned stored values if any changed."""

    risk: Risk
    quarantine: str | None
    cleaned: np.ndarray | None = None


def header_risk(data: Dataset) -> Risk:
    """How much the attributes alone hint at burned-in text; the weights are a judgement, only YES decides."""
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


def inspect(data: Dataset, clean: bool, detector: Detector | None, hidden: str | None = None) -> Verdict:
    """The verdict on the pixels of `data`, which is not changed; only the first frame can be looked at.

    `hidden` tells what lies where no detector looks, if anything does (`hidden_overlay`).
    """
    risk = header_risk(data)
    declared = "BurnedInAnnotation is YES, and nothing was cleaned" if risk.header == 100 else None
    if not any(name in data for name in PIXEL_ATTRIBUTES):
        return Verdict(risk, None)
    if detector is None:
        return Verdict(risk, declared or hidden)
    try:
        values = _readable(data)
    except InputError as error:
        return Verdict(risk, str(error))
    found = tuple(detector(values))
    risk = replace(risk, looked=True, found=found, left=found)
    if clean and (found or (hidden and not declared)):
        return _cleaned(data, values, risk, detector)
    if found:
        return Verdict(risk, f"{len(found)} boxes of what reads as text; add clean-pixel to paint them over")
    return Verdict(risk, declared or hidden)


def _cleaned(data: Dataset, values: np.ndarray, risk: Risk, detector: Detector) -> Verdict:
    """Paint until the detector is silent, twice at most: what it sees only once the first boxes are gone counts too."""
    dark = values.max() if data.get("PhotometricInterpretation") == "MONOCHROME1" else values.min()
    boxes = risk.found
    for _ in range(2):
        values = painted(values, boxes, int(dark))
        boxes = tuple(detector(values))
        if not boxes:
            return Verdict(replace(risk, left=()), None, values)
    return Verdict(replace(risk, left=boxes), f"{len(boxes)} boxes still read as text after cleaning", values)


def _readable(data: Dataset) -> np.ndarray:
    """Stored values that can be judged and written again; raises Unreadable (an InputError) otherwise."""
    kind, frames, bits = (data.get(k) for k in ("PhotometricInterpretation", "NumberOfFrames", "BitsAllocated"))
    if frames and frames != 1:
        raise guard.Unreadable("unchecked", f"{frames} frames, and only the first can be looked at")
    if kind == "PALETTE COLOR" or "PixelData" not in data or bits not in (8, 16):
        raise guard.Unreadable("unchecked", f"{kind or 'unknown'} pixels of {bits} bits cannot be looked at")
    values = guard.stored_values(data, Path("pixels"))
    if values.ndim != 2 and values.shape[2:] != (3,):
        raise guard.Unreadable("unchecked", f"pixels of shape {values.shape} cannot be looked at")
    return values


def hidden_overlay(source: Dataset) -> str | None:
    """An overlay in the bits above the stored ones (retired, PS3.3 C.9.2), unseen by detectors; None where none is."""
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0102) in source and (group, 0x3000) not in source:
            return "an overlay in the unused bits of the pixels; add clean-pixel to clear them"
    return None


def rewrite(data: Dataset, values: np.ndarray) -> None:
    """Put `values` into `data` as uncompressed Explicit VR Little Endian (PS3.5 A.2), in place."""
    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelDataProviderURL"):
        data.pop(name, None)
    if values.ndim == 3:
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", 0
    data.BitsAllocated = values.dtype.itemsize * 8
    data.HighBit = int(data.BitsStored) - 1
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    data.add_new("PixelData", "OB" if data.BitsAllocated == 8 else "OW", raw + b"\0" * (len(raw) % 2))
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def trimmed(data: Dataset) -> None:
    """Cut uncompressed pixel data to the length its header gives: behind it anything may hide. In place."""
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
