"""View, region, side and kind of an image from plain attributes and from codes, and in the manifest of a conversion."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medlt.data.convert import ConversionSettings, convert
from medlt.data.convert.tables import COLUMNS
from medlt.data.dicom import attributes as a
from medlt.data.dicom import read_dicom

Write = Callable[..., Path]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}


def coded(value: str, scheme: str = "SRT", meaning: str = "") -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return [item]


def data(**tags: Any) -> Dataset:
    out = Dataset()
    for name, value in tags.items():
        setattr(out, name, value)
    return out


VIEWS = {
    "PA": ("R-10214", codes.cid4010.PosteroAnterior),
    "AP": ("R-10206", codes.cid4010.AnteroPosterior),
    "LL": ("R-10236", codes.cid4010.LeftLateral),
    "RL": ("R-10232", codes.cid4010.RightLateral),
    "LATERAL": ("R-102CD", codes.cid4010.LateralProjection),
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_view_by_its_code(view: str) -> None:
    """The codes of pydicom's copy of CID 4010, and their predecessors."""
    older, code = VIEWS[view]
    assert a.view_of(data(ViewCodeSequence=coded(older))) == view
    assert a.view_of(data(ViewCodeSequence=coded(code.value, "SCT"))) == view
    assert a.view_of(data(ViewCodeSequence=coded("99-1", "99LOCAL", code.meaning))) == view
    assert a.view_of(data(ViewPosition="LLD", ViewCodeSequence=coded(older))) == "LLD"


@pytest.mark.parametrize("items", [[], coded("R-10202", meaning="frontal"), [Dataset()]])
def test_no_view_is_made_up(items: list[Dataset]) -> None:
    assert a.view_of(data(ViewCodeSequence=items)) == ""
    assert a.view_of(Dataset()) == ""


def test_the_region_by_its_code() -> None:
    chest = codes.cid4031.Chest
    assert a.region_of(data(AnatomicRegionSequence=coded(chest.value, "SCT", "x"))) == "CHEST"
    assert a.region_of(data(AnatomicRegionSequence=coded("T-D3000"))) == "CHEST"
    assert a.region_of(data(AnatomicRegionSequence=coded("T-D8700", meaning="Hand"))) == "HAND"
    assert a.region_of(data(BodyPartExamined="KNEE", AnatomicRegionSequence=coded("T-D3000"))) == "KNEE"
    assert a.region_of(Dataset()) == ""


def test_the_side_of_image_series_and_frame() -> None:
    assert a.laterality_of(data(ImageLaterality="L", Laterality="R")) == "L"
    assert a.laterality_of(data(ImageLaterality="", Laterality="R")) == "R"
    assert a.laterality_of(data(FrameLaterality="U")) == "U"
    assert a.laterality_of(Dataset()) == ""


def test_the_procedure() -> None:
    described = {"PerformedProcedureStepDescription": "Chest 2 views", "StudyDescription": "Thorax"}
    assert a.procedure_of(data(ProcedureCodeSequence=coded("1", meaning="Chest PA"), **described)) == "Chest PA"
    assert a.procedure_of(data(**described)) == "Chest 2 views"
    assert a.procedure_of(data(StudyDescription="Thorax")) == "Thorax"
    assert a.procedure_of(Dataset()) == ""


@pytest.mark.parametrize(
    ("tags", "notes"),
    [
        ({"SOPClassUID": uid.DigitalXRayImageStorageForPresentation, "Modality": "DX"}, ()),
        ({"SOPClassUID": uid.DigitalXRayImageStorageForProcessing, "Modality": "DX"}, (a.RAW,)),
        ({"PresentationIntentType": "FOR PROCESSING", "Modality": "DX"}, (a.RAW,)),
        ({"SOPClassUID": uid.DigitalMammographyXRayImageStorageForPresentation, "Modality": "DX"}, (a.MAMMOGRAM,)),
        ({"SOPClassUID": uid.DigitalMammographyXRayImageStorageForPresentation, "Modality": "MG"}, ()),
        ({"SOPClassUID": uid.BreastTomosynthesisImageStorage}, (a.MAMMOGRAM,)),
        ({"SOPClassUID": "1.2.3.4"}, ()),
    ],
)
def test_notes_on_the_kind_of_image(tags: dict[str, str], notes: tuple[str, ...]) -> None:
    assert a.kind_notes(data(**tags)) == notes


def test_read_dicom_knows_the_codes(write_dicom: Write) -> None:
    tags = {"ViewPosition": None, "ViewCodeSequence": coded("R-10206"), "AnatomicRegionSequence": coded("T-D3000")}
    shown = read_dicom(write_dicom(RAMP, **tags))
    assert (shown.view, shown.body_part) == ("AP", "CHEST")


def converted(folder: Path, out: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary of a conversion, and the manifest's rows by SOP Instance UID."""
    import pandas as pd

    counts = convert(folder, out, ConversionSettings(**settings), workers=1)
    return counts, pd.read_parquet(out / "manifest.parquet").set_index("sop_uid").to_dict("index")


def test_the_manifest_describes_the_image(write_dicom: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_dicom(
        RAMP,
        name="in/a.dcm",
        **{**FULL, "SOPInstanceUID": "1.2.3", "ViewPosition": None, "ViewCodeSequence": coded("R-10214")},
        AnatomicRegionSequence=coded("T-D3000"),
        Laterality="L",
        PresentationIntentType="FOR PROCESSING",
        PatientOrientation=["L", "F"],
        Manufacturer="Maker",
        ManufacturerModelName="Model 1",
        StudyDescription="Thorax",
    )
    row = converted(tmp_path / "in", tmp_path / "out")[1]["1.2.3"]
    expected = {
        "view": "PA",
        "body_part": "CHEST",
        "laterality": "L",
        "sop_class": "DigitalXRayImageStorageForPresentation",
        "presentation_intent": "FOR PROCESSING",
        "orientation": "L\\F",
        "manufacturer": "Maker",
        "model": "Model 1",
        "procedure": "Thorax",
        "notes": a.RAW,
    }
    assert {name: row[name] for name in expected} == expected
    assert set(expected) <= set(COLUMNS)


def test_filters_see_codes_and_mammography(write_dicom: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    mammogram = {"SOPClassUID": uid.DigitalMammographyXRayImageStorageForPresentation, "BodyPartExamined": "CHEST"}
    write_dicom(RAMP, name="in/coded.dcm", SOPInstanceUID="1.1", AnatomicRegionSequence=coded("T-D3000"), **FULL)
    write_dicom(RAMP, name="in/breast.dcm", SOPInstanceUID="1.2", **mammogram, **FULL)
    counts, rows = converted(tmp_path / "in", tmp_path / "out", modalities=("DX",), body_parts=("CHEST",))
    assert (list(rows), counts["reasons"]) == (["1.1"], {"filtered": 1})


FLOAT = b"\x08\x00\x00\x01FD\x02\x00ab"
BROKEN = {
    "a sequence that is a float of wrong length": b"\x54\x00\x20\x02FD\x02\x00ab",
    "a code that is a float of wrong length": b"\x54\x00\x20\x02SQ\0\0\x12\0\0\0\xfe\xff\x00\xe0\x0a\0\0\0" + FLOAT,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_description_that_cannot_be_read_loses_no_image(write_dicom: Write, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = write_dicom(RAMP, name="in/a.dcm", SOPInstanceUID="1.1", ViewPosition=None, **FULL)
    raw = path.read_bytes()
    at = raw.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(raw[:at] + BROKEN[name] + raw[at:])
    row = converted(tmp_path / "in", tmp_path / "out")[1]["1.1"]
    assert (row["view"], row["notes"]) == ("", "")
