"""A misspelt column, finding, layout or option is answered with the closest name; a missing path is absolute."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from medlt.data.convert import ConversionSettings, convert
from medlt.data.images import read_image
from medlt.data.layouts import from_csv, from_nih, read_layout
from medlt.data.loaders import dataset
from medlt.data.manifest import Manifest
from medlt.names import did_you_mean
from medlt.types import InputError

FINDINGS = ("A", "B", "No_Finding")


@pytest.mark.parametrize(
    ("name", "known", "close"),
    [
        ("patientid", ["uid", "patient_id"], "; did you mean 'patient_id'?"),
        ("pleural effusion", ["Pleural_Effusion", "Edema"], "; did you mean 'Pleural_Effusion'?"),
        ("Cardiomegally", ["Cardiomegaly", "Mass"], "; did you mean 'Cardiomegaly'?"),
        ("Hernia", ["Mass", "Edema"], ""),
        ("x", [], ""),
    ],
)
def test_the_closest_name(name: str, known: list[str], close: str) -> None:
    assert did_you_mean(name, known) == close


@pytest.mark.parametrize(
    ("layout", "options", "close"),
    [
        (
            "csv",
            {"findings": "A,B,No Finding"},
            "column 'No Finding'; did you mean 'No_Finding'? the table has",
        ),
        ("csv", {"findings": "A,B", "column": ["patient_id=patientid"]}, "did you mean 'patient_id'?"),
        ("csv", {"findings": "A,B", "colum": "x"}, "no option --colum; did you mean '--column'?"),
        ("csv", {"findings": "A,B", "uncertain": "unknow"}, "did you mean 'unknown'? use unknown"),
        ("cvs", {}, "unknown layout 'cvs'"),
        ("mimic_cxr_lt", {}, "did you mean 'mimic-cxr-lt'?"),
    ],
)
def test_layouts_suggest(folder: Path, layout: str, options: dict[str, object], close: str) -> None:
    with pytest.raises(InputError) as error:
        read_layout(layout, folder / "labels.csv", options)
    assert close in str(error.value)


def test_manifests_suggest(table: pd.DataFrame) -> None:
    rows = table.set_index("uid")
    with pytest.raises(InputError, match="missing column 'a'; did you mean 'A'"):
        Manifest(rows, ("a", "B"), Path())
    with pytest.raises(InputError, match="unknown split 'tests'; did you mean 'test'"):
        Manifest(rows.replace({"split": {"test": "tests"}}), FINDINGS, Path())
    with pytest.raises(InputError, match="unknown split 'vall'; did you mean 'val'"):
        Manifest(rows, FINDINGS, Path()).split("vall")


def test_conversions_suggest() -> None:
    with pytest.raises(InputError, match="--preset veiwer: unknown; did you mean 'viewer'"):
        ConversionSettings(preset="veiwer")


MISSING: dict[str, Callable[[], object]] = {
    "image": lambda: read_image(Path("gone.png")),
    "manifest": lambda: Manifest.read(Path("gone.parquet")),
    "table": lambda: from_csv(table=Path("gone.csv"), findings=FINDINGS),
    "test list": lambda: from_nih(table=Path("nih.csv"), images=Path(), test_list=Path("gone.txt")),
    "source of a layout": lambda: read_layout("folder", Path("gone")),
    "source of a conversion": lambda: convert(Path("gone"), Path("out"), ConversionSettings()),
    "images of a layout": lambda: read_layout("csv", Path("labels.csv"), {"findings": "A", "images": "gone"}),
    "files of a manifest": lambda: relative().check_files(),
    "file of a data set": lambda: dataset(relative(), 8),
    "file to hash": lambda: relative().digest(),
}


def relative() -> Manifest:
    """A manifest whose root is a missing relative folder."""
    rows = pd.read_csv("labels.csv", dtype={"patient_id": str}).set_index("uid")
    return Manifest(rows, FINDINGS, Path("gone"))


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_path_is_absolute(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    columns = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position"]
    pd.DataFrame([["1.png", "Mass", 1, 40, "M", "PA"]], columns=columns).to_csv("nih.csv", index=False)
    with pytest.raises(InputError) as error:
        MISSING[name]()
    assert str(error.value).startswith(f"{folder}/gone")
