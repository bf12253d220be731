"""Which files are kept, and which attributes become columns of the manifest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medlt.data.convert import ConversionSettings, convert
from medlt.data.convert.filters import parsed, values
from medlt.data.convert.tables import COLUMNS
from medlt.data.deidentify import Profile
from medlt.types import InputError

Film, Run = Callable[..., bytes], Callable[..., Any]
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, film: Film) -> Folder:
    """folder(name={tags}) -> a folder with a film of each name; each film has pixels of its own."""

    def make(**films: dict[str, Any]) -> Path:
        (tmp_path / "in").mkdir()
        for at, (name, tags) in enumerate(films.items()):
            pixels = np.roll(np.arange(256, dtype=np.uint16).reshape(16, 16), at)
            (tmp_path / "in" / name).write_bytes(film(pixels, **tags))
        return tmp_path / "in"

    return make


def code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def test_a_film_without_a_body_part_is_kept_and_counted(folder: Folder, run: Run, tmp_path: Path) -> None:
    source = folder(
        chest={}, none={"BodyPartExamined": None}, empty={"BodyPartExamined": ""}, hand={"BodyPartExamined": "HAND"}
    )
    result = run(source, tmp_path / "out", body_parts=("CHEST",))
    assert sorted(result.rows) == ["chest", "empty", "none"]
    assert result.reasons == {"hand": "filtered"}
    assert result.counts["unlabelled_body_part"] == 2
    assert {name: "no body part" in row["notes"] for name, row in result.rows.items()} == {
        "chest": False,
        "empty": True,
        "none": True,
    }
    dry = convert(source, tmp_path / "dry", ConversionSettings(body_parts=("CHEST",), dry_run=True), workers=1)
    assert (dry["converted"], dry["unlabelled_body_part"]) == (3, 2)
    assert run(source, tmp_path / "all").counts["unlabelled_body_part"] == 0


def test_include_and_exclude_match_whole_values(folder: Folder, run: Run, tmp_path: Path) -> None:
    source = folder(
        wanted={"Manufacturer": "Acme ", "ImageType": ["ORIGINAL", "PRIMARY", "POST"]},
        other={"Manufacturer": "ACME CORP"},
        derived={"Manufacturer": "ACME", "ImageType": ["DERIVED", "SECONDARY"]},
        raw={"Manufacturer": "ACME", "PresentationIntentType": "FOR PROCESSING"},
        none={"Manufacturer": None},
        second={"Manufacturer": "Other"},
    )
    result = run(
        source,
        tmp_path / "out",
        include=parsed("--include", ["Manufacturer=acme", "Manufacturer=other"]),
        exclude=parsed("--exclude", ["ImageType=secondary,x", "PresentationIntentType=For Processing"]),
    )
    assert sorted(result.rows) == ["second", "wanted"]
    assert result.reasons == dict.fromkeys(("other", "derived", "raw", "none"), "filtered")


def test_every_include_must_match_and_an_empty_value_is_an_absent_attribute(
    folder: Folder, run: Run, tmp_path: Path
) -> None:
    source = folder(
        both={"Manufacturer": "A", "StationName": "X"},
        one={"Manufacturer": "A", "StationName": "Y"},
        absent={"Manufacturer": "A", "StationName": None},
    )
    result = run(source, tmp_path / "out", include=parsed("--include", ["Manufacturer=A", "StationName=X,"]))
    assert sorted(result.rows) == ["absent", "both"]


def test_filters_read_codes_and_file_meta(folder: Folder, run: Run, tmp_path: Path) -> None:
    source = folder(erect={"PatientOrientationCodeSequence": [code("10904000", "Erect")]}, flat={})
    keep = parsed("--include", ["PatientOrientationCodeSequence=ERECT", "TransferSyntaxUID=1.2.840.10008.1.2.1"])
    assert list(run(source, tmp_path / "out", include=keep).rows) == ["erect"]


def test_a_run_with_other_filters_is_refused(folder: Folder, run: Run, tmp_path: Path) -> None:
    source = folder(a={})
    run(source, tmp_path / "out", include=parsed("--include", ["Modality=DX"]))
    run(source, tmp_path / "out", include=parsed("--include", ["Modality=dx"]))
    for name, other in (
        ("include", (("Modality", ("CR",)),)),
        ("exclude", (("Modality", ("CR",)),)),
        ("tags", ("KVP",)),
    ):
        with pytest.raises(InputError, match=f"begun with {name}"):
            run(source, tmp_path / "out", **{"include": parsed("--include", ["Modality=DX"]), name: other})


def test_tags_are_columns_of_text(folder: Folder, run: Run, tmp_path: Path) -> None:
    tags = ("ImageType", "KVP", "SeriesNumber", "StationName", "ViewCodeSequence")
    source = folder(
        a={
            "ImageType": ["ORIGINAL", "PRIMARY"],
            "KVP": "120.50",
            "SeriesNumber": 0,
            "ViewCodeSequence": [code("399348003", "antero-posterior"), code("1", "other")],
        },
        b={"StationName": "x" * 2000},
    )
    result = run(source, tmp_path / "out", tags=tags)
    assert {name: result.rows["a"][name] for name in tags} == {
        "ImageType": "ORIGINAL\\PRIMARY",
        "KVP": "120.50",
        "SeriesNumber": "0",
        "StationName": "",
        "ViewCodeSequence": "antero-posterior",
    }
    assert result.rows["b"]["StationName"] == "x" * 1024


def test_tags_of_a_de_identified_file_are_those_that_remain(folder: Folder, run: Run, tmp_path: Path) -> None:
    source = folder(a={"StationName": "ROOM 7", "PatientName": "Doe^Jane", "KVP": "120", "StudyDate": "20200102"})
    tags = ("PatientName", "StationName", "KVP")
    row = run(source, tmp_path / "out", tags=tags, profile=Profile.parse("basic"), key=b"k" * 32).rows["a"]
    assert row["KVP"] == "120"
    assert "ROOM" not in row["StationName"]
    assert "Doe" not in row["PatientName"]
    assert row["study_date"] != "20200102"


def test_the_metadata_of_mimic_cxr_jpg_are_there(folder: Folder, run: Run, tmp_path: Path) -> None:
    """Columns of mimic-cxr-2.0.0-metadata.csv; its ids are uid, patient_id and study_uid here."""
    source = folder(
        a={
            "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
            "ViewPosition": "PA",
            "StudyDate": "21800506",
            "StudyTime": "213014.531",
            "ProcedureCodeSequence": [code("1", "CHEST (PA AND LAT)")],
            "ViewCodeSequence": [code("2", "postero-anterior")],
            "PatientOrientationCodeSequence": [code("3", "Erect")],
        }
    )
    row = run(source, tmp_path / "out").rows["a"]
    assert {name: row[name] for name in row if name in (
        "procedure_step", "view", "rows", "columns", "study_date", "study_time", "procedure_code", "view_code",
        "orientation_code",
    )} == {
        "procedure_step": "CHEST (PA AND LAT)",
        "view": "PA",
        "rows": 16,
        "columns": 16,
        "study_date": "21800506",
        "study_time": "213014.531",
        "procedure_code": "CHEST (PA AND LAT)",
        "view_code": "postero-anterior",
        "orientation_code": "Erect",
    }  # fmt: skip


def test_dates_of_de_identified_files_shift_or_go(folder: Folder, run: Run, tmp_path: Path) -> None:
    source = folder(a={"StudyDate": "20200102", "StudyTime": "101112"})
    key = b"k" * 32
    basic = run(source, tmp_path / "basic", profile=Profile.parse("basic"), key=key).rows["a"]
    shifted = run(source, tmp_path / "dates", profile=Profile.parse("basic,retain-dates-modified"), key=key).rows["a"]
    assert basic["study_date"] == ""
    assert len(shifted["study_date"]) == 8
    assert "20100101" <= shifted["study_date"] < "20200102"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tags": ("StationNam",)}, "--tags StationNam: no DICOM keyword; did you mean 'StationName'"),
        ({"tags": ("PixelData",)}, "--tags PixelData: holds bytes"),
        ({"include": (("qqq", ("A",)),)}, "--include qqq: no DICOM keyword; write it"),
        ({"exclude": (("manufacturer", ("A",)),)}, "--exclude manufacturer: no DICOM keyword; did you mean 'Manufa"),
    ],
)
def test_what_is_no_keyword_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        ConversionSettings(**given)
    assert message in str(error.value)


def test_a_filter_needs_an_equals_sign() -> None:
    with pytest.raises(InputError, match="has no '='"):
        parsed("--include", ["Manufacturer"])


def test_no_keyword_is_the_name_of_a_column() -> None:
    from pydicom.datadict import keyword_dict

    assert not set(COLUMNS) & set(keyword_dict)


def test_unreadable_values_are_none(film: Film) -> None:
    data = Dataset()
    data.StationName = ["a ", "", " b"]
    assert values(data, "StationName") == ["a", "b"]
    assert values(data, "Rows") == []
    assert values(data, "TransferSyntaxUID") == []
