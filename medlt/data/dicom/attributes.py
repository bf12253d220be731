"""Describes a radiograph by its attributes: the plain ones, else the coded ones that newer devices write instead."""

from __future__ import annotations

import re

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID

NO_IMAGE_MODALITIES = frozenset("SR PR KO DOC SEG REG RTDOSE RTPLAN RTSTRUCT RTRECORD".split())
RAW = "raw detector values (FOR PROCESSING)"
MAMMOGRAM = "a mammography SOP class under another modality"
_VIEWS = {
    "PA": ("R-10214", "R-40888", "272479007", "posteroanterior"),
    "AP": ("R-10206", "399348003", "anteroposterior"),
    "LL": ("R-10236", "399173006", "leftlateral"),
    "RL": ("R-10232", "399198007", "rightlateral"),
    "LATERAL": ("R-102CD", "399067008", "lateral"),
}
"""View Position (C.8.7.1.1.1) by the codes of CID 4010, SNOMED RT and CT, and by the letters of their meaning."""
_REGIONS = {
    "CHEST": ("T-D3000", "51185008", "816094009", "43799004", "thorax", "thoracic"),
    "CHESTABDOMEN": ("R-FAB55", "416550000", "chestandabdomen"),
}
"""Body Part Examined (PS3.16 annex L) by the codes of CID 4031; other regions take the meaning of their code."""
_MAMMOGRAPHY = ("DigitalMammography", "BreastTomosynthesis", "BreastProjection")


def text(data: Dataset, keyword: str) -> str:
    """Return the attribute as stripped text, its values joined by a backslash; "" if absent or empty."""
    value = data.get(keyword)
    if isinstance(value, MultiValue | list | tuple):
        value = "\\".join(map(str, value))
    return str(value or "").strip()


def remark(data: Dataset, keyword: str) -> str:
    """Return `text` of an attribute without which an image is still usable: "" if its bytes cannot be read."""
    try:
        return text(data, keyword)
    except Exception:  # hostile bytes may raise any exception
        return ""


def items(data: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none if it is absent, unreadable or no sequence."""
    try:
        value = data.get(keyword)
    except Exception:  # hostile bytes may raise any exception
        return []
    return list(value) if isinstance(value, Sequence) else []


def view_of(data: Dataset) -> str:
    """Return View Position, else PA, AP, LL, RL or LATERAL by the View Code Sequence (C.8.11.5); "" if unknown."""
    return remark(data, "ViewPosition") or _by_code(data, "ViewCodeSequence", _VIEWS)


def region_of(data: Dataset) -> str:
    """Return Body Part Examined, else the Anatomic Region Sequence (C.7.6.8) as such a term; "" if unknown."""
    coded = remark(data, "BodyPartExamined") or _by_code(data, "AnatomicRegionSequence", _REGIONS)
    return coded or meaning(data, "AnatomicRegionSequence").upper()


def laterality_of(data: Dataset) -> str:
    """Return Image Laterality, else Laterality of the series, else that of the frame: L, R, B or U; "" if unknown."""
    return next((t for k in ("ImageLaterality", "Laterality", "FrameLaterality") if (t := remark(data, k))), "")


def procedure_of(data: Dataset) -> str:
    """Return the meaning of the procedure's code, else the description of the procedure or of the study."""
    descriptions = ("PerformedProcedureStepDescription", "RequestedProcedureDescription", "StudyDescription")
    described = (remark(data, keyword) for keyword in descriptions)
    return meaning(data, "ProcedureCodeSequence") or next(filter(None, described), "")


def sop_class_of(data: Dataset) -> str:
    """Return the keyword of the SOP class, or its UID if it is unknown."""
    name = remark(data, "SOPClassUID")
    return UID(name).keyword or name


def is_mammogram(data: Dataset) -> bool:
    """Return whether the SOP class is one of mammography, whatever the modality is."""
    return sop_class_of(data).startswith(_MAMMOGRAPHY)


def reason_without_pixels(data: Dataset) -> str:
    """Return not_an_image if the SOP class is known and of other objects by its keyword (PS3.6 A), else no_pixels."""
    name = sop_class_of(data)
    return "not_an_image" if name.endswith("Storage") and "Image" not in name else "no_pixels"


def kind_notes(data: Dataset) -> tuple[str, ...]:
    """Return notes on an image that is not for viewing (C.8.11.1.1.1), or is a mammogram of another modality."""
    raw = remark(data, "PresentationIntentType").upper() == "FOR PROCESSING"
    raw = raw or sop_class_of(data).endswith("ForProcessing")
    hidden = is_mammogram(data) and remark(data, "Modality").upper() != "MG"
    return (*((RAW,) if raw else ()), *((MAMMOGRAM,) if hidden else ()))


def meaning(data: Dataset, keyword: str) -> str:
    """Return the meaning of the first code of a sequence, "" if there is none."""
    return next((remark(item, "CodeMeaning") for item in items(data, keyword)), "")


def _by_code(data: Dataset, keyword: str, table: dict[str, tuple[str, ...]]) -> str:
    for item in items(data, keyword)[:1]:
        keys = {remark(item, "CodeValue").upper(), re.sub(r"[^a-z]", "", remark(item, "CodeMeaning").lower())}
        return next((term for term, codes in table.items() if keys.intersection(codes)), "")
    return ""
