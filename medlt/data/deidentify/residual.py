"""The sweep after the actions: what identified the patient above must not survive in any attribute below.

Names, numbers, addresses, dates and UIDs that the actions took out are looked for in every text that stays. A text that
holds one is replaced as a whole: half a sentence around a name still tells.
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
"""Defined terms that steer how a file is read: never a name, even where a patient is called Primary."""
_IDENTIFYING = re.compile(
    r"(ID|IDs|Identifier|Identification|Numbers?|Address|Title|InstitutionName|StationName|Issuer.*|Information|Value)$"
)
_SHORTEST = 4
_WHOLE = 6  # from this length on found inside longer words too
_LONGEST_BLOB = 1 << 22


@dataclass
class Identifiers:
    """What was taken out of one data set, in lower case."""

    found: set[str] = field(default_factory=set)

    def note(self, element: DataElement) -> None:
        """Remember what in this element, and in the items under it, identifies."""
        if element.VR == "SQ":
            for item in element.value or []:
                for inner in _elements(item):
                    self.note(inner)
            return
        texts = element.value if element.VM > 1 else [element.value]
        for text in texts if element.VR in SWEPT or element.VR in ("DA", "DT", "UI") else ():
            self.found |= {t.lower() for t in _tokens(element.VR, element.keyword, str(text or "").strip(" \0"))}

    def pattern(self) -> re.Pattern[str] | None:
        """One expression for all of them, or None where there is none."""
        texts = sorted(self.found - {values.WORD.lower()}, key=len, reverse=True)
        parts = [re.escape(t) if len(t) >= _WHOLE else rf"(?<![^\W_]){re.escape(t)}(?![^\W_])" for t in texts]
        return re.compile("|".join(parts), re.IGNORECASE) if parts else None

    def inside(self, blob: bytes) -> bool:
        """Whether the bytes hold one of them that is long enough not to be there by chance."""
        lower = blob.lower()
        return any(len(t) >= _WHOLE and t.encode() in lower for t in self.found)


def _elements(item: Dataset) -> list[DataElement]:
    """Elements of a data set that can be read at all."""
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
    """One word with at least four digits: an identifier, whatever the attribute it stands in."""
    return " " not in text and sum(c.isdigit() for c in text) >= 4


def _dates(text: str) -> set[str]:
    try:
        day = datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return set()
    return {day.strftime(f) for f in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y.%m.%d", "%Y/%m/%d")}


def sweep(data: Dataset, identifiers: Identifiers) -> int:
    """Replace what still holds an identifier by a dummy, at every level; the number of elements replaced."""
    pattern = identifiers.pattern()
    return _sweep(data, pattern, identifiers) if pattern else 0


def _sweep(data: Dataset, pattern: re.Pattern[str], identifiers: Identifiers) -> int:
    hits = 0
    for element in list(data):
        if element.VR == "SQ":
            hits += sum(_sweep(item, pattern, identifiers) for item in element.value)
        elif _holds(element, pattern, identifiers):
            data[element.tag] = DataElement(element.tag, element.VR, values.dummy(element.VR, element.keyword))
            hits += 1
    return hits


def _holds(element: DataElement, pattern: re.Pattern[str], identifiers: Identifiers) -> bool:
    value: Any = element.value
    if element.keyword in FIXED or not value:
        return False
    if element.VR in SWEPT:
        texts = value if element.VM > 1 else [value]
        return any(pattern.search(str(text)) for text in texts)
    small = element.VR in BINARY and element.keyword != "PixelData" and len(value) <= _LONGEST_BLOB
    return small and identifiers.inside(bytes(value))
