"""The sweep after the actions: removed identifiers must not remain in any other attribute.

The sweep searches every remaining text for the names, numbers, addresses, dates and UIDs that the actions removed. A
text with one of them is replaced as a whole, because the rest of the sentence may still identify the patient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medlt.data.deidentify import values

SWEPT = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT", "PN"})
BINARY = frozenset({"OB", "OW", "OD", "OF", "OL", "OV", "UN"})
FIXED = frozenset({"Modality", "ImageType", "PhotometricInterpretation", "SpecificCharacterSet", "PatientPosition"})
"""Attributes whose defined terms decide how a file is read; never swept, even if a patient is called Primary."""
_IDENTIFYING = re.compile(
    r"(ID|IDs|Identifier|Identification|Numbers?|Address|Title|InstitutionName|StationName|Issuer.*|Information|Value)$"
)
_SHORTEST = 4
_WHOLE = 6  # from this length on, also matched inside longer words
_LONGEST_BLOB = 1 << 22


@dataclass
class Identifiers:
    """Identifiers that were removed from one data set, in lower case."""

    texts: set[str] = field(default_factory=set)

    def note(self, element: DataElement) -> None:
        """Record the identifiers in this element and in its items."""
        if element.VR == "SQ":
            for item in element.value or []:
                for inner in _elements(item):
                    self.note(inner)
            return
        texts = element.value if element.VM > 1 else [element.value]
        for text in texts if element.VR in SWEPT or element.VR in ("DA", "DT", "UI") else ():
            self.texts |= {t.lower() for t in _tokens(element.VR, element.keyword, str(text or "").strip(" \0"))}

    def pattern(self) -> re.Pattern[str] | None:
        """Return one regular expression for all of them, or None if there are none."""
        texts = sorted(self.texts - {values.WORD.lower()}, key=len, reverse=True)
        parts = [re.escape(t) if len(t) >= _WHOLE else rf"(?<![^\W_]){re.escape(t)}(?![^\W_])" for t in texts]
        return re.compile("|".join(parts), re.IGNORECASE) if parts else None

    def inside(self, blob: bytes) -> bool:
        """Return whether the bytes hold one of them that is too long for a coincidence."""
        lower = blob.lower()
        return any(len(t) >= _WHOLE and t.encode() in lower for t in self.texts)


def _elements(item: Dataset) -> list[DataElement]:
    """Return the elements of a data set that can be read."""
    out = []
    for tag in list(item.keys()):
        try:
            out.append(item[tag])
        except Exception:
            continue
    return out


def _tokens(vr: str, keyword: str, text: str) -> set[str]:
    if vr == "PN":
        parts = re.split(r"[\s^=,.;_]+", text)
        return {p for p in parts if len(p) >= 3 or (len(p) == 2 and not p.isascii())}
    if vr in ("DA", "DT"):
        return _dates(text[:8])
    if vr == "UI":
        return {text} if len(text) >= 10 else set()
    if len(text) < _SHORTEST or not (_IDENTIFYING.search(keyword) or _numbered(text)):
        return set()
    return {text}


def _numbered(text: str) -> bool:
    """Return whether the text is one word with at least four digits: an identifier in any attribute."""
    return " " not in text and sum(c.isdigit() for c in text) >= 4


def _dates(text: str) -> set[str]:
    try:
        day = datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return set()
    return {day.strftime(f) for f in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y.%m.%d", "%Y/%m/%d")}


def sweep(data: Dataset, identifiers: Identifiers) -> int:
    """Replace elements that still hold an identifier by a dummy, at every level; return their number."""
    pattern = identifiers.pattern()
    return _sweep(data, pattern, identifiers) if pattern else 0


def _sweep(data: Dataset, pattern: re.Pattern[str], identifiers: Identifiers) -> int:
    hits = 0
    for element in list(data):
        if element.VR == "SQ":
            hits += sum(_sweep(item, pattern, identifiers) for item in element.value)
        elif element.keyword == "ImageType":
            hits += _shortened(element, pattern)
        elif _holds(element, pattern, identifiers):
            data[element.tag] = DataElement(element.tag, element.VR, values.dummy(element.VR, element.keyword))
            hits += 1
    return hits


def _shortened(element: DataElement, pattern: re.Pattern[str]) -> int:
    """Cut the values behind the two that are defined (PS3.3 C.7.6.1.1.2) if one of them holds an identifier."""
    texts = list(element.value) if element.VM > 1 else []
    if not any(pattern.search(str(text)) for text in texts[2:]):
        return 0
    element.value = texts[:2]
    return 1


def _holds(element: DataElement, pattern: re.Pattern[str], identifiers: Identifiers) -> bool:
    value: Any = element.value
    if element.keyword in FIXED or not value:
        return False
    if element.VR in SWEPT:
        texts = value if element.VM > 1 else [value]
        return any(pattern.search(str(text)) for text in texts)
    small = element.VR in BINARY and element.keyword != "PixelData" and len(value) <= _LONGEST_BLOB
    return small and identifiers.inside(bytes(value))
