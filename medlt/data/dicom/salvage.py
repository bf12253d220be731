"""Mends the bytes of a DICOM file whose pixels a strict parse does not reach; every step is followed by a new parse."""

from __future__ import annotations

import struct

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from medlt.data.dicom.encapsulation import DELIMITER

INVALID_VR = "an element with an invalid value representation"
NO_DELIMITER = "no sequence delimiter behind the pixels"
_KNOWN = frozenset(kind.value.encode() for kind in VR if len(kind.value) == 2)
_LONG = frozenset(kind.encode() for kind in EXPLICIT_VR_LENGTH_32)
_WHOLE = 2**32 - 1
_ITEMS = 0xFFFE


def is_deflated(data: Dataset) -> bool:
    """Return whether offsets of elements are not offsets in the file."""
    return bool(data.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian)


def overruns(raw: bytes, data: Dataset) -> RawDataElement | None:
    """Return the element of a parse whose length reaches beyond the end of the file; None if there is none."""
    if is_deflated(data):
        return None
    for element in data.values():
        if isinstance(element, RawDataElement) and element.length != _WHOLE:
            if (element.value_tell or 0) + element.length > len(raw):
                return element
    return None


def closed(raw: bytes) -> bytes:
    """Return the file with the sequence delimiter (PS3.5 A.4) that it lacks at its end."""
    return raw + DELIMITER


def without_invalid_vr(raw: bytes, data: Dataset) -> bytes | None:
    """Return the file with its first element of an invalid VR as UN (PS3.5 6.2.2); None if there is none to mend.

    `data` is pydicom's parse of `raw`. The length of such an element has 16 or 32 bits: of both, the one behind which
    a valid element follows.
    """
    implicit, little = data.original_encoding
    if implicit is not False or is_deflated(data):
        return None
    order = ">" if little is False else "<"
    for element in data.values():
        if isinstance(element, RawDataElement) and (element.VR is None or element.VR.encode() not in _KNOWN):
            at = (element.value_tell or 0) - 8
            if raw[at : at + 4] == struct.pack(f"{order}2H", element.tag.group, element.tag.elem):
                return _as_unknown(raw, at, order)
    return None


def without_nested_invalid_vr(raw: bytes) -> bytes | None:
    """Return the file with its first element of an invalid VR, at any depth, as UN; None if there is none to mend.

    For files that no parser gets through, of Explicit VR Little Endian with a file meta group length (PS3.10 7.1).
    """
    if raw[128:140] != b"DICM\2\0\0\0UL\4\0" or len(raw) < 144:
        return None
    at = 144 + int(struct.unpack_from("<L", raw, 140)[0])
    while at + 8 <= len(raw):
        group, kind = struct.unpack_from("<H", raw, at)[0], raw[at + 4 : at + 6]
        if group == _ITEMS:  # items and delimiters have no value of their own
            at += 8
        elif kind not in _KNOWN:
            return _as_unknown(raw, at, "<")
        elif kind in _LONG:
            length = int(struct.unpack_from("<L", raw, at + 8)[0]) if at + 12 <= len(raw) else _WHOLE
            if length == _WHOLE and kind != b"SQ":
                return None
            at += 12 + (0 if kind == b"SQ" else length)
        else:
            at += 8 + int(struct.unpack_from("<H", raw, at + 6)[0])
    return None


def _as_unknown(raw: bytes, at: int, order: str) -> bytes | None:
    head, (short,) = raw[at : at + 4], struct.unpack_from(f"{order}H", raw, at + 6)
    ends = [(at + 8, short)]
    if not short and at + 12 <= len(raw):
        ends.insert(0, (at + 12, struct.unpack_from(f"{order}L", raw, at + 8)[0]))
    for start, length in ends:
        if _is_element(raw, start + length, head, order):
            value = raw[start : start + length]
            return b"".join([raw[:at], head, b"UN\0\0", struct.pack(f"{order}L", length), value, raw[start + length :]])
    return None


def _is_element(raw: bytes, at: int, before: bytes, order: str) -> bool:
    """Return whether an element that may follow the tag `before` is at this offset, or a whole file ends there."""
    if at == len(raw):
        return True
    if at + 8 > len(raw) or struct.unpack(f"{order}2H", raw[at : at + 4]) <= struct.unpack(f"{order}2H", before):
        return False
    kind = raw[at + 4 : at + 6]
    if kind in _LONG:
        length = struct.unpack_from(f"{order}L", raw, at + 8)[0] if at + 12 <= len(raw) else _WHOLE + 1
        return bool(length == _WHOLE or at + 12 + length <= len(raw))
    short = struct.unpack_from(f"{order}H", raw, at + 6)[0]
    return bool(at + 8 + short <= len(raw)) and (kind in _KNOWN or not kind.isalpha())
