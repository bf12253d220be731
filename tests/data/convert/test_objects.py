"""DICOM objects that are no images: listed with their study, without identifiers where the images have none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from medlt.data.deidentify import Profile

Film, Run = Callable[..., bytes], Callable[..., Any]
PIXELS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
OTHER: dict[str, dict[str, Any]] = {
    "report": {"SOPClassUID": uid.BasicTextSRStorage, "Modality": "SR"},
    "pdf": {"SOPClassUID": uid.EncapsulatedPDFStorage, "Modality": "OT", "DocumentTitle": "Report of Jane Doe"},
    "state": {"SOPClassUID": uid.GrayscaleSoftcopyPresentationStateStorage, "Modality": "PR", "ContentLabel": "MARKS"},
    "ecg": {"SOPClassUID": uid.TwelveLeadECGWaveformStorage, "Modality": "ECG"},
    "dose": {"SOPClassUID": uid.XRayRadiationDoseSRStorage, "Modality": "SR", "SeriesDescription": "Dose"},
}


@pytest.fixture
def source(film: Film, tmp_path: Path) -> Path:
    """A film, a film without pixels, a DICOMDIR, a text, and OTHER, all of one study."""
    (tmp_path / "in").mkdir()
    concept = Dataset()
    concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = "18782-3", "LN", "Radiology Report"
    nothing = {**dict.fromkeys(PIXELS), "PhotometricInterpretation": None, "PixelData": None}
    for name, tags in OTHER.items():
        more = {"ConceptNameCodeSequence": [concept]} if name == "report" else {}
        raw = film(**nothing, **tags, **more, StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{len(name)}")
        (tmp_path / "in" / name).write_bytes(raw)
    (tmp_path / "in/film").write_bytes(film(StudyInstanceUID="1.2.3"))
    (tmp_path / "in/header").write_bytes(film(PixelData=None, SOPClassUID=uid.ComputedRadiographyImageStorage))
    directory = {**nothing, "Modality": None, "DirectoryRecordSequence": [Dataset()]}
    (tmp_path / "in/DICOMDIR").write_bytes(film(**directory, StudyInstanceUID="1.2.3"))
    (tmp_path / "in/text").write_text("SR " * 99)
    return tmp_path / "in"


def listed(result: Any) -> dict[str, dict[str, str]]:
    """{file: row} of objects.csv."""
    names = pd.read_csv(result.places.sources, dtype=str).set_index("source")["file"]
    table = pd.read_csv(result.out / "objects.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == ["source", "kind", "modality", "title", "study_uid", "sop_uid"]
    return {names[row["source"]]: row for row in table.to_dict("records")}


def test_objects_are_listed_with_their_study(source: Path, run: Run, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out")
    rows = listed(result)
    assert {name: (row["kind"], row["modality"], row["title"]) for name, row in rows.items()} == {
        "report": ("BasicTextSRStorage", "SR", "Radiology Report"),
        "pdf": ("EncapsulatedPDFStorage", "OT", "Report of Jane Doe"),
        "state": ("GrayscaleSoftcopyPresentationStateStorage", "PR", "MARKS"),
        "ecg": ("TwelveLeadECGWaveformStorage", "ECG", ""),
        "dose": ("XRayRadiationDoseSRStorage", "SR", "Dose"),
    }
    assert {row["study_uid"] for row in rows.values()} == {"1.2.3"}
    assert {row["sop_uid"] for row in rows.values()} == {f"1.2.3.{len(name)}" for name in OTHER}
    assert result.reasons == {
        **dict.fromkeys([*OTHER, "DICOMDIR"], "not_an_image"),
        "header": "no_pixels",
        "text": "not_dicom",
    }
    assert result.counts["failed"] == 0


def test_objects_of_de_identified_studies_have_the_uids_of_the_images(source: Path, run: Run, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", profile=Profile.parse("basic"), key=b"k" * 32)
    rows = listed(result)
    assert sorted(rows) == sorted(OTHER)
    assert {row["study_uid"] for row in rows.values()} == {result.rows["film"]["study_uid"]}
    assert all(row["sop_uid"].startswith("2.25.") and not row["title"] for row in rows.values())
    text = (tmp_path / "out/objects.csv").read_text()
    assert "Jane" not in text
    assert "1.2.3" not in text


def test_without_objects_there_is_an_empty_table(film: Film, run: Run, tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(film())
    run(tmp_path / "film", tmp_path / "out")
    assert (tmp_path / "out/objects.csv").read_text() == "source,kind,modality,title,study_uid,sop_uid\n"
