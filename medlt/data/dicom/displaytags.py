"""Repairs the tags that determine the display of an image, once, when its file is opened.

All later steps then read finite numbers, usable look-up tables and known words. Notes are fixed texts.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medlt.data.dicom.attributes import items

WINDOW = "a window that is not a number was ignored"
RESCALE = "a rescale slope or intercept that is not a number was ignored"
SPACING = "a pixel spacing that is not a number was ignored"
COMMA = "a decimal comma was read as a point"
VOI_LUT = "a VOI LUT without usable data was ignored"
MODALITY_LUT = "a modality LUT without usable data was ignored"
SHUTTER = "a display shutter was not applied"
FUNCTION = "an unknown VOI LUT function was read as LINEAR"
_TABLES = {"VOILUTSequence": VOI_LUT, "ModalityLUTSequence": MODALITY_LUT}
_WORDS = ("VOILUTFunction", "PresentationLUTShape", "PhotometricInterpretation")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_TEXT = (None, "DS", "IS", "LO", "SH", "ST", "UN", "UT")
_MACROS = {
    "FrameVOILUTSequence": (("WindowCenter", "WindowWidth", "VOILUTFunction"), ("VOILUTSequence",)),
    "PixelValueTransformationSequence": (("RescaleSlope", "RescaleIntercept"), ("ModalityLUTSequence",)),
    "PixelMeasuresSequence": (("PixelSpacing",), ()),
    "FrameAnatomySequence": (("FrameLaterality", "AnatomicRegionSequence"), ()),
}
"""Functional group macros (PS3.3 C.7.6.16.2): attributes that plain images have at the top level, and those that
replace them there."""


class Decimals(NamedTuple):
    """The values of a decimal attribute, None for one that is not finite; whether one has a comma, or is no number."""

    values: list[float | None]
    comma: bool = False
    bad: bool = False


def repair_display(data: Dataset, index: int = 0) -> tuple[str, ...]:
    """Repair the display tags of a frame, counted from 0, in place; return notes."""
    _lift_groups(data, index)
    notes = [*_window(data), *_rescale(data), *_spacing(data), *_tables(data), *_words(data)]
    if _filled(data, "ShutterShape"):  # C.7.6.11
        notes.append(SHUTTER)
    return tuple(dict.fromkeys(notes))


def _lift_groups(data: Dataset, index: int) -> None:
    """Copy attributes of the frame's, else the shared, functional groups to the top level, where it has none."""
    own = items(data, "PerFrameFunctionalGroupsSequence")[index : index + 1]
    groups = [*own, *items(data, "SharedFunctionalGroupsSequence")]
    for group in groups:
        for macro, (names, others) in _MACROS.items():
            macros = items(group, macro)
            if macros and not any(_filled(data, name) for name in (*names, *others)):
                data.update({macros[0][name].tag: macros[0][name] for name in names if name in macros[0]})


def _filled(data: Dataset, keyword: str) -> bool:
    return keyword in data and data.get_item(keyword).value not in (None, "", b"")


def _decimals(data: Dataset, keyword: str) -> Decimals:
    """Return the values of a decimal attribute (DS, PS3.5 6.2); no values if it is absent or empty."""
    if not _filled(data, keyword):
        return Decimals([])
    try:
        parts = _parts(data, keyword)
    except Exception:  # hostile bytes may raise any exception
        return Decimals([None], bad=True)
    commas = [bool(_COMMA.fullmatch(part)) for part in parts]
    values = [_finite(part.replace(",", ".") if comma else part) for part, comma in zip(parts, commas, strict=True)]
    bad = any(part and value is None for part, value in zip(parts, values, strict=True))
    return Decimals(values, any(commas), bad)


def _parts(data: Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute as texts, from the bytes of the file where these are text."""
    element = data.get_item(keyword)
    if isinstance(element, RawDataElement) and element.VR in _TEXT:
        return [part.strip(" \0") for part in bytes(element.value or b"").decode("latin-1").split("\\")]
    value = data[keyword].value
    return [str(part).strip(" \0") for part in (value if isinstance(value, MultiValue | list | tuple) else [value])]


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _write(data: Dataset, keyword: str, values: list[float]) -> None:
    """Write decimals of at most 16 characters (PS3.5 6.2); without values, remove the attribute."""
    if values:
        data.add_new(keyword, "DS", [f"{value:.10g}" for value in values])
    else:
        data.pop(keyword, None)


def _window(data: Dataset) -> list[str]:
    """Keep the windows of C.11.2.1.2 whose centre and width are both finite."""
    centre, width = _decimals(data, "WindowCenter"), _decimals(data, "WindowWidth")
    comma, bad = centre.comma or width.comma, centre.bad or width.bad
    if comma or bad:
        pairs = [(c, w) for c, w in zip(centre.values, width.values, strict=False) if c is not None and w is not None]
        _write(data, "WindowCenter", [c for c, _ in pairs])
        _write(data, "WindowWidth", [w for _, w in pairs])
    return [COMMA] * comma + [WINDOW] * bad


def _rescale(data: Dataset) -> list[str]:
    notes: list[str] = []
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        number = _decimals(data, keyword)
        if number.comma or number.bad:
            _write(data, keyword, [] if number.bad else [value for value in number.values[:1] if value is not None])
            notes.append(RESCALE if number.bad else COMMA)
    return notes


def _spacing(data: Dataset) -> list[str]:
    notes: list[str] = []
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        number = _decimals(data, keyword)
        if number.comma or number.bad:
            _write(data, keyword, [] if number.bad else [value for value in number.values if value is not None])
            notes.append(SPACING if number.bad else COMMA)
    return notes


def _tables(data: Dataset) -> list[str]:
    """Keep the look-up tables of C.11.1 and C.11.2 that have a descriptor and entries, in a known byte order."""
    notes: list[str] = []
    for keyword, note in _TABLES.items():
        tables = items(data, keyword)
        usable = [item for item in tables if _is_table(item)]
        if len(usable) < len(tables) or (not tables and _filled(data, keyword) and not _is_empty(data, keyword)):
            notes.append(note)
            if usable:
                data[keyword].value = Sequence(usable)
            else:
                del data[keyword]
        for item in usable if data.original_encoding[1] is False else ():
            _native_words(item)
    return notes


def _is_empty(data: Dataset, keyword: str) -> bool:
    value = data.get_item(keyword).value
    return isinstance(value, Sequence) and not len(value)


def _is_table(item: Dataset) -> bool:
    try:
        return (
            len([int(value) for value in item.LUTDescriptor]) == 3 and np.size(item.LUTData) > 0 and item.LUTData != b""
        )
    except Exception:  # hostile bytes may raise any exception
        return False


def _native_words(item: Dataset) -> None:
    """Replace words of a big-endian file (OW, PS3.5 7.3) by numbers, which have no byte order; in place."""
    raw = item.LUTData
    if isinstance(raw, bytes) and len(raw) % 2 == 0:
        item.add_new("LUTData", "US", np.frombuffer(raw, ">u2").tolist())


def _words(data: Dataset) -> list[str]:
    """Write code strings without spaces and in capitals, and an unknown VOI LUT function as LINEAR."""
    for keyword in _WORDS:
        value = data.get(keyword)
        if isinstance(value, str) and value != (word := value.strip(" \0").upper()):
            data.add_new(keyword, "CS", word)
    function = data.get("VOILUTFunction")
    if not function or function in _FUNCTIONS:
        return []
    data.VOILUTFunction = "LINEAR"
    return [FUNCTION] if _filled(data, "WindowCenter") else []
