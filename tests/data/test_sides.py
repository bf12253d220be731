"""The side of a finding, read from the text of its report; sentences are our own."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import medlt
from medlt.cli import app
from medlt.data.manifest import Manifest
from medlt.data.sides import side_in, with_sides
from medlt.types import InputError


@pytest.mark.parametrize(
    ("text", "finding", "side"),
    [
        ("Large LEFT pleural effusion.", "Effusion", "left"),
        ("Large left\npleural effusion.", "Pleural_Effusion", "left"),
        ("A 3 cm mass in the right upper lobe", "Mass", "right"),
        ("Massive right hemithorax opacification.", "Mass", ""),
        ("Several nodules project over the left lung.", "Nodule", "left"),
        ("Right-sided pneumothorax.", "Pneumothorax", "right"),
        ("No pneumothorax on the right.", "Pneumothorax", ""),
        ("No pneumothorax. Small pneumothorax on the left.", "Pneumothorax", "left"),
        ("Left effusion has not changed.", "Effusion", "left"),
        ("Bilateral effusions, larger on the right.", "Effusion", ""),
        ("Left effusion. Later on, effusion on both sides.", "Effusion", ""),
        ("Left effusion. Right effusion.", "Effusion", ""),
        ("Right chest tube. Left pneumothorax is smaller.", "Pneumothorax", "left"),
        ("Right chest tube and left pneumothorax.", "Pneumothorax", ""),
        ("Consolidated right lower lobe; heart size is normal", "Consolidation", "right"),
        ("The nodule measures 1.5 cm and lies in the left apex.", "Nodule", "left"),
        ("Free air under the right hemidiaphragm.", "Pneumoperitoneum", "right"),
        ("Enlarged left ventricle with cardiomegaly.", "Cardiomegaly", ""),
        ("Pneumothorax.", "Pneumothorax", ""),
        ("The right lung is clear.", "Pneumothorax", ""),
        ("Scarring in the left apex.", "Scarring", "left"),
        ("", "Mass", ""),
    ],
)
def test_a_report_names_a_side_or_none(text: str, finding: str, side: str) -> None:
    assert side_in(text, finding) == side


@pytest.fixture
def rows() -> Manifest:
    """Six images of five studies; findings Mass and Effusion."""
    names = [f"u{i}" for i in range(6)]
    table = {"path": [f"{n}.png" for n in names], "patient_id": names, "split": "train", "view": "PA",
             "study_id": [501, 501, 502, 503, 504, 505], "Mass": [1, 1, 1, 0, 1, 1],
             "Effusion": [1, 0, 0, 1, 1, None]}  # fmt: skip
    return Manifest(pd.DataFrame(table, index=pd.Index(names, name="uid")), ("Mass", "Effusion"), Path())


def test_sides_are_kept_where_the_finding_is_present_and_no_text_is(rows: Manifest, tmp_path: Path) -> None:
    """Sections of one study are read together; a study has several images; text of a patient never leaves its table."""
    table = tmp_path / "sections.csv"
    table.write_text(
        'study,findings,impression\ns501,"A mass in the left lung.",Left effusion.\ns502,,Right mass\n'
        's503,"Left mass. Right effusion.",\ns505,Left effusion,"Mass, right"\n'
    )
    made = with_sides(rows, table).rows
    assert made["side_Mass"].tolist() == ["left", "left", "right", None, None, "right"]
    assert made["side_Effusion"].tolist() == ["left", None, None, "right", None, None]
    assert set(made) == {*rows.rows, "side_Mass", "side_Effusion"}
    private = with_sides(rows, table).without_regions().rows
    assert set(private) == set(rows.rows)


def test_a_given_side_stays_where_the_report_has_none(rows: Manifest, tmp_path: Path) -> None:
    table = tmp_path / "reports.csv"
    table.write_text("uid,report\nu0,Left mass.\nu1,Nothing new.\n")
    given = Manifest(rows.rows.assign(side_Mass=["right", "right", None, None, None, "left"]), rows.findings, rows.root)
    assert with_sides(given, table).rows["side_Mass"].tolist() == ["left", "right", None, None, None, "left"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uid,note\nu0,Left mass\n", "is no table of reports; give a column uid or study_id or study, and a column"),
        ("uid,report\nother,Left mass\n", "no report is of an image of this collection; check its column uid"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(rows: Manifest, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reports.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        with_sides(rows, tmp_path / "reports.csv")


def test_reports_by_study_need_studies(rows: Manifest, tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_text("study_id,report\n501,Left mass\n")
    bare = Manifest(rows.rows.drop(columns="study_id"), rows.findings, rows.root)
    with pytest.raises(InputError, match="the images have no column study_id; name them by uid"):
        with_sides(bare, tmp_path / "reports.csv")


def test_the_command_line_and_a_collection_read_the_same_sides(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        Image.new("L", (64, 64), 90).save(tmp_path / f"{name}.png")
    table = "uid,path,patient_id,split,view,Mass\na,a.png,1,train,PA,1\nb,b.png,2,train,PA,0\n"
    (tmp_path / "labels.csv").write_text(table)
    (tmp_path / "reports.csv").write_text("uid,text\na,Right mass.\nb,Left mass.\n")
    own, out = tmp_path / "labels.csv", tmp_path / "m.parquet"
    arguments = [
        "manifest",
        "csv",
        str(own),
        str(out),
        "--findings",
        "Mass",
        "--all-zero",
        "keep",
        "--json",
        "--reports",
    ]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "reports.csv")])
    assert done.exit_code == 0, done.stderr
    assert "images with the side of a finding: Mass 1" in json.loads(done.stdout)["notes"]
    (tmp_path / "silent.csv").write_text("uid,text\na,A mass.\n")
    without = CliRunner().invoke(
        app, [*arguments[:3], str(tmp_path / "n.parquet"), *arguments[4:], str(tmp_path / "silent.csv")]
    )
    assert any(
        note.startswith("images with the side of a finding: none") for note in json.loads(without.stdout)["notes"]
    )
    sides = Manifest.read(out).rows["side_Mass"]
    assert sides["a"] == "right"
    assert sides.isna()["b"]
    collection = medlt.Collection.from_csv(own, findings=("Mass",)).with_reports(tmp_path / "reports.csv")
    assert collection.manifest.rows["side_Mass"]["a"] == "right"
