"""Lists DICOM objects that are no images, such as reports, documents and presentation states, with their study."""

from __future__ import annotations

from io import BytesIO

import pydicom
from pydicom.dataset import Dataset

from medlt.data.convert.settings import ConversionSettings
from medlt.data.deidentify.keyed import Keyed
from medlt.data.dicom.attributes import meaning, remark, sop_class_of

OBJECT_COLUMNS = ("source", "kind", "modality", "title", "study_uid", "sop_uid")
_TITLES = ("DocumentTitle", "ContentDescription", "ContentLabel", "SeriesDescription")
_LONGEST = 1024


def object_row(raw: bytes, settings: ConversionSettings) -> dict[str, str]:
    """Return the row of objects.csv for the bytes of a file, without `source`; {} for a DICOMDIR and for no object.

    Under a de-identification profile the UIDs are those that replace them in every file, and the title, which is free
    text, is empty. `raw` must have passed the limits of `medlt.data.dicom.guard`.
    """
    try:
        data = pydicom.dcmread(BytesIO(raw), force=True, stop_before_pixels=True)
        if "SOPClassUID" not in data or "DirectoryRecordSequence" in data:
            return {}
        row = {"kind": sop_class_of(data), "modality": remark(data, "Modality"), "title": _title(data)}
        uids = {"study_uid": remark(data, "StudyInstanceUID"), "sop_uid": remark(data, "SOPInstanceUID")}
    except Exception:  # hostile bytes may raise any exception
        return {}
    if settings.profile is not None:
        uids = {name: uid and Keyed(settings.key, "").uid(uid) for name, uid in uids.items()}
        row["title"] = ""
    return {name: value[:_LONGEST] for name, value in (row | uids).items()}


def _title(data: Dataset) -> str:
    """Return the title of a document, else the concept of a report (PS3.3 C.17.3), a label, or the series'."""
    title, *others = (remark(data, keyword) for keyword in _TITLES)
    return next(filter(None, (title, meaning(data, "ConceptNameCodeSequence"), *others)), "")
