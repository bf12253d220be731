"""The attributes of a file against PS3.15 Table E.1-1 and the allow-list: what should be gone, empty or replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medlt.data.deidentify import values
from medlt.data.deidentify.kept import is_standard, stays
from medlt.data.deidentify.profile import BASIC, CODES, Profile, letters

CLAIMS = frozenset(
    {
        "PatientIdentityRemoved",
        "DeidentificationMethod",
        "DeidentificationMethodCodeSequence",
        "LongitudinalTemporalInformationModified",
    }
)
PSEUDONYM = re.compile(r"[A-Z2-7]{16}")
_PSEUDONYMS = frozenset({"PatientID", "PatientName", "AccessionNumber", "StudyID"})
_METHOD = re.compile(r"medlt [\w.+-]+, PS3\.15 \w+ Table E\.1-1|proof [0-9a-f]{40}")
_OWN_UIDS = ("2.25.", "1.2.840.10008.")
_PIXELS = frozenset({"PixelData", "FloatPixelData", "DoubleFloatPixelData"})
_META = frozenset(
    {
        *("FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID"),
        *("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName"),
    }
)


def header(data: Dataset) -> Iterator[str]:
    """Yield what the preamble, the file meta information and the attributes of a file still hold."""
    if (data.preamble or b"").strip(b"\0"):
        yield "a preamble that is not empty"
    for element in data.file_meta:
        if element.keyword not in _META:
            yield f"{_name(element)} in the file meta information"
    if str(data.get("PatientIdentityRemoved", "")) != "YES":
        yield "no claim that the patient's identity was removed"
    yield from _level(data, _profile(data))


def _profile(data: Dataset) -> Profile:
    """Return the profile that the file claims."""
    claimed = {str(item.get("CodeValue", "")) for item in data.get("DeidentificationMethodCodeSequence") or ()}
    return Profile(frozenset({BASIC, *(name for name, (code, _) in CODES.items() if code in claimed)}))


def _level(data: Dataset, profile: Profile) -> Iterator[str]:
    table = letters(profile, None)
    for tag in sorted(data.keys()):
        if tag.is_private:
            yield f"private attribute {tag}"
            continue
        try:
            element = data[tag]
        except Exception:  # hostile bytes may raise any exception
            yield f"attribute {tag}, which cannot be read"
            continue
        if element.keyword in CLAIMS:
            yield from _claims(element)
        elif element.keyword not in _PIXELS:
            yield from _element(element, table.get(int(tag)), profile)
    if "CodeMeaning" in data and not is_standard(data):
        yield "a code that is none of the standard's"


def _claims(element: DataElement) -> Iterator[str]:
    """Yield a method in words of its own: the claims of a file are free text, too."""
    if element.keyword == "DeidentificationMethod":
        texts = element.value if element.VM > 1 else [element.value or ""]
        if not all(_METHOD.fullmatch(str(text)) for text in texts):
            yield f"{_name(element)} with other words than medlt's"


def _element(element: DataElement, letter: str | None, profile: Profile) -> Iterator[str]:
    if letter is None:
        if not stays(element):
            yield f"{_name(element)}, which is not on the list of attributes that may stay"
    elif letter == "X" or not _replaced(element, letter):
        yield f"{_name(element)}, which must be {'removed' if letter == 'X' else 'emptied or replaced'} (PS3.15)"
    if element.keyword == "PatientAge" and values.age(element.value) != element.value:
        yield f"{_name(element)} above 090Y"
    if element.VR == "SQ":
        for item in element.value or ():
            yield from _level(item, profile)
    elif element.VR == "UI" and not all(text.startswith(_OWN_UIDS) for text in _texts(element)):
        yield f"{_name(element)} that is not under 2.25, and may be the source's"


def _replaced(element: DataElement, letter: str) -> bool:
    """Return whether the value may be one that medlt writes for this letter; UIDs and items are seen elsewhere."""
    if letter == "K" or element.is_empty or element.VR in ("SQ", "UI"):
        return True
    if letter == "C":
        return element.VR in ("DA", "DT", "TM")
    if element.keyword in _PSEUDONYMS and PSEUDONYM.fullmatch(str(element.value)):
        return True
    return bool(element.value == values.dummy(element.VR, element.keyword))


def _texts(element: DataElement) -> list[str]:
    texts = element.value if element.VM > 1 else [element.value or ""]
    return [str(text) for text in texts if str(text)]


def _name(element: DataElement) -> str:
    return f"{element.keyword or 'unknown attribute'} {element.tag}"
