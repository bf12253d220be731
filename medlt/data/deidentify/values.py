"""Replacement values: dummies that fit the value representation (PS3.5 Table 6.2-1), and dates shifted by days."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

WORD, SCHEME = "ANONYMIZED", "99MEDLT"
_TEXT = ("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT", "PN")
_BYTES = ("OB", "OW", "OD", "OF", "OL", "OV", "UN")
_SPECIAL = {
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "AS": "000Y",
    "UR": "urn:anonymized",
    "UI": "2.25.0",
    "AT": 0x00080000,
    "DS": "0",
    "IS": "0",
}
OLDEST = 90
_DA = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})")
_DT = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{0,6}(?:\.\d{1,6})?)([+-]\d{4})?")


def age(value: Any) -> Any:
    """Return an age string (AS) with 90 years and more as 090Y (45 CFR 164.514(b)(2)(i)(C)); others as they are."""
    text = str(value or "").strip(" \0")
    return "090Y" if re.fullmatch(r"\d{3}Y", text) and int(text[:3]) >= OLDEST else value


def dummy(vr: str, keyword: str) -> Any:
    """Return a non-empty neutral value that is valid for `vr`; a sequence gets one item, a code if it holds codes."""
    if vr == "SQ":
        return Sequence([_code() if "Code" in keyword else Dataset()])
    if vr in _TEXT:
        return WORD
    return b"\0" * 8 if vr in _BYTES else _SPECIAL.get(vr, 0)


def _code() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = WORD, SCHEME, WORD
    return item


def shifted(vr: str, text: str, days: int) -> str | None:
    """Return a DA or DT value shifted by `days`, in its own precision; TM unchanged. None for an invalid value.

    PS3.15 E.3.6: intervals between a patient's dates are kept. A DT without day or month shifts from its first day.
    """
    text = text.strip(" \0")
    if vr == "TM":
        return text if re.fullmatch(r"\d{2}:?(\d{2})?:?(\d{2})?(\.\d{1,6})?", text) else None
    match = (_DA if vr == "DA" else _DT).fullmatch(text)
    if not match:
        return None
    year, month, day, *rest = match.groups()
    try:
        moved = date(int(year), int(month or 1), int(day or 1)) + timedelta(days)
    except (ValueError, OverflowError):
        return None
    digits = f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"
    return digits[: 4 + 2 * bool(month) + 2 * bool(day)] + "".join(part or "" for part in rest)
