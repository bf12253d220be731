"""Applies the actions of a profile: builds a new data set, level by level, and never changes the source.

Attributes that Table E.1-1 does not list stay only if they are on the list of `kept`. Removed without a look at them:
private attributes, whole curve and overlay groups, and values that cannot be read. Instance UIDs are replaced.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from medlt.data.deidentify import values
from medlt.data.deidentify.kept import standardise, stays
from medlt.data.deidentify.keyed import Keyed
from medlt.data.deidentify.profile import DATES, FAMILIES, Profile, letters
from medlt.data.deidentify.residual import Identifiers

PSEUDONYMS = {"PatientID": "patient", "PatientName": "patient", "AccessionNumber": "accession", "StudyID": "study"}
"""Z attributes that get a keyed dummy instead of an empty value, so that files of one patient or study stay linked."""
CODE_SYSTEMS = frozenset({"CodingSchemeUID", "ContextUID", "MappingResourceUID", "ContextGroupExtensionCreatorUID"})
REGISTERED = "1.2.840.10008."


@dataclass
class Actions:
    """One run over one data set. `counts` is by letter, `dropped` by the tag (eight hex digits) of what was removed.

    removed: the identifiers that the sweep searches for; number: the data set's PatientID; it and the name become the
    pseudonym of `keyed.patient`.
    """

    profile: Profile
    keyed: Keyed
    number: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    removed: Identifiers = field(default_factory=Identifiers)

    def level(self, source: Dataset, nested: bool) -> Dataset:
        """Return the de-identified copy of one data set or sequence item."""
        family = None if nested else FAMILIES.get(str(source.get("SOPClassUID", "")))
        table = letters(self.profile, family)
        out = Dataset()
        for tag in sorted(source.keys()):
            element = _readable(source, tag)
            letter = "X" if element is None else table.get(int(tag)) or self._unlisted(element)
            self.counts[letter.rstrip("*")] += 1
            if letter == "X":
                self.dropped[f"{int(tag):08X}"] += 1
            if element is not None:
                self._apply(letter, element, out)
        standardise(out)
        return out

    def _unlisted(self, element: DataElement) -> str:
        if element.tag.element != 0 and stays(element):
            return "U" if element.VR == "UI" and element.keyword not in CODE_SYSTEMS else "K"
        return "X"

    def _apply(self, letter: str, element: DataElement, out: Dataset) -> None:
        bare = element.VR == "SQ" and (letter[0] == "U" or _referring(letter, element))
        if letter == "K" or bare:
            out[element.tag] = self._kept(element, bare)
            return
        value = self._replaced(letter, element)
        if value != element.value:
            self.removed.note(element)
        if value is not None:
            out[element.tag] = DataElement(element.tag, element.VR, value, already_converted=element.VR == "SQ")

    def _kept(self, element: DataElement, bare: bool = False) -> DataElement:
        """Return a new element with the same value; items of sequences are processed, if `bare` to references only."""
        value: Any = values.age(element.value) if element.keyword == "PatientAge" else element.value
        if element.VR == "SQ":
            items = [self.level(item, nested=True) for item in value or []]
            value = Sequence([_reference(item) for item in items] if bare else items)
        kept = DataElement(element.tag, element.VR, value, already_converted=True)
        kept.is_undefined_length = element.is_undefined_length
        return kept

    def _replaced(self, letter: str, element: DataElement) -> Any:
        """Return the new value, or None for an element that is removed."""
        if letter == "U":
            return self._uids(element)
        if letter == "C":
            moved = self._moved(element)
            return moved if moved is not None else self._replaced(self._fallback(element), element)
        if letter == "D":
            return self._dummy(element)
        return self._empty(element) if letter == "Z" else None

    def _dummy(self, element: DataElement) -> Any:
        if element.VR == "UI":
            return self._uids(element) or self.keyed.uid("")
        if element.keyword in PSEUDONYMS:
            return self._empty(element) or values.WORD
        return values.dummy(element.VR, element.keyword)

    def _empty(self, element: DataElement) -> Any:
        kind = PSEUDONYMS.get(element.keyword)
        if kind and (text := str(element.value or "").strip(" \0")):
            own = element.keyword == "PatientName" or (element.keyword == "PatientID" and text == self.number)
            return self.keyed.pseudonym(kind, self.keyed.patient if own else text)
        return Sequence() if element.VR == "SQ" else b"" if element.VR.startswith("O") else ""

    def _uids(self, element: DataElement) -> Any:
        texts = [str(t).strip(" \0") for t in (element.value if element.VM > 1 else [element.value or ""])]
        new = [t if not t or t.startswith(REGISTERED) else self.keyed.uid(t) for t in texts]
        return new if len(new) > 1 else new[0]

    def _moved(self, element: DataElement) -> Any:
        """Return shifted dates and unchanged times; None if a value is not a date, or the element is neither."""
        if element.VR not in ("DA", "DT", "TM"):
            return None
        texts = element.value if element.VM > 1 else [element.value or ""]
        new = ["" if t == "" else values.shifted(element.VR, str(t), self.keyed.days) for t in texts]
        if None in new:
            return None
        return new if len(new) > 1 else new[0]

    def _fallback(self, element: DataElement) -> str:
        """Return the letter of the Basic Profile alone for an attribute that could not be cleaned."""
        return letters(Profile(self.profile.options - {DATES}), None).get(int(element.tag), "X")


def _readable(source: Dataset, tag: BaseTag) -> DataElement | None:
    """Return the parsed element; None for elements that are removed unread: private, curves, overlays, unreadable."""
    repeating = tag.group & 0xFF00 in (0x5000, 0x6000) and tag.group < 0x6100
    if tag.is_private or repeating:
        return None
    try:
        return source[tag]
    except Exception:
        return None


def _referring(letter: str, element: DataElement) -> bool:
    """Return whether a sequence must not be empty and holds references, which stay with new UIDs."""
    return letter == "D" and element.keyword.startswith("Referenced")


def _reference(item: Dataset) -> Dataset:
    """Return the item with its UIDs and frame numbers only."""
    for tag in [element.tag for element in item if element.VR not in ("UI", "IS")]:
        del item[tag]
    return item
