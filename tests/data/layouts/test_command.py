"""`medlt manifest` as a user meets it: what it says, what it writes, how it exits."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.config import ManifestData
from medlt.data.manifest import Manifest
from medlt.data.source import open_data


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, ["manifest", *map(str, args)])


def test_a_whole_table_is_exit_0_and_one_json_object(folder: Path, table: pd.DataFrame) -> None:
    done = invoke("csv", folder / "labels.csv", folder / "m.parquet", "--findings", "A,B,No_Finding", "--json")
    assert done.exit_code == 0
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["patients"], summary["orphans_file"]) == (6, 5, None)
    assert summary["splits"] == {"train": 4, "val": 1, "test": 1}
    assert summary["findings"]["A"] == {"positive": 3, "negative": 2, "unknown": 1}
    assert {k: v["count"] for k, v in summary["orphans"].items()} == {
        "label_without_image": 0,
        "image_without_label": 0,
        "box_without_image": 0,
    }
    assert summary["boxes"] == {"count": 0, "images": 0}
    assert list(Manifest.read(folder / "m.parquet").rows["patient_id"]) == list(table["patient_id"])
    assert list(folder.glob("*.orphans.csv")) == []


def test_orphans_are_counted_shown_and_listed_beside(folder: Path) -> None:
    (folder / "images/0.png").rename(folder / "images/new.png")
    done = invoke("csv", folder / "labels.csv", folder / "m.parquet", "--findings", "A,B,No_Finding")
    assert done.exit_code == 1
    assert "label without image: 1, such as images/0.png" in done.stdout
    assert "image without label: 1, such as images/new.png" in done.stdout
    assert sorted(pd.read_csv(folder / "m.orphans.csv")["path"]) == ["images/0.png", "images/new.png"]
    assert len(Manifest.read(folder / "m.parquet").rows) == 5


def test_an_image_without_a_label_alone_is_no_failure(folder: Path) -> None:
    (folder / "images/new.png").touch()
    done = invoke("csv", folder / "labels.csv", folder / "m.parquet", "--findings", "A,B,No_Finding")
    assert done.exit_code == 0
    assert (folder / "m.orphans.csv").exists()


def test_again_is_the_same_and_another_is_refused(folder: Path, table: pd.DataFrame) -> None:
    same = ("csv", folder / "labels.csv", folder / "m.parquet", "--findings", "A,B,No_Finding")
    assert invoke(*same).exit_code == invoke(*same).exit_code == 0
    before = (folder / "m.parquet").read_bytes()
    done = invoke(*same, "--resplit", "--seed", "3")
    assert done.exit_code == 2
    assert "exists with other contents" in done.stderr
    assert (folder / "m.parquet").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["images", "labels.csv", "m.parquet"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("dicomdir",), "unknown layout 'dicomdir'"),
        (("csv",), "name the label columns with --findings"),
        (("csv", "--task", "1"), "layout csv has no option --task"),
        (("csv", "--findings", "A,B,No_Finding", "--column", "uid=image"), "missing column 'image'"),
        (("csv", "--findings", "A,B,No_Finding", "--uncertain", "no"), "--uncertain: 'no' is not valid; use unknown"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(folder: Path, args: tuple[str, ...], message: str) -> None:
    done = invoke(args[0], folder / "labels.csv", folder / "m.parquet", *args[1:])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "m.parquet").exists()


def test_all_options_reach_the_layout(folder: Path, table: pd.DataFrame) -> None:
    table["A"] = [-1, 0, 0, None, 1, 0]
    table.rename(columns={"uid": "image"}).assign(use=1, B=[1, 0, 1, 0, 0, 0], No_Finding=0).to_csv(
        folder / "t.csv", index=False
    )
    extra = [
        "--column",
        "uid=image",
        "--patient",
        r"(\d)",
        "--extra-columns",
        "age",
        "--train-flag",
        "use",
        "--blank",
        "negative",
    ]
    policies = ["--uncertain", "positive", "--all-zero", "no-finding", "--missing", "keep", "--images", folder]
    done = invoke("csv", folder / "t.csv", folder / "m.parquet", "--findings", "A,B,No_Finding", *extra, *policies)
    assert done.exit_code == 0, done.stderr
    rows = Manifest.read(folder / "m.parquet").rows
    assert list(rows["patient_id"]) == list("012345")
    assert list(rows["A"]) == [1, 0, 0, 0, 1, 0]
    assert list(rows["No_Finding"]) == [0, 1, 0, 1, 0, 1]
    assert "age" in rows
    assert "sex" not in rows


def test_a_recipe_takes_the_manifest(folder: Path) -> None:
    out = folder / "elsewhere" / "m.parquet"
    assert invoke("csv", folder / "labels.csv", out, "--findings", "A,B,No_Finding").exit_code == 0
    manifest = open_data(ManifestData(path=out), seed=0, folder=folder / "run")
    assert manifest.findings == ("A", "B", "No_Finding")
    assert manifest.file("u0").read_bytes() == (folder / "images/0.png").read_bytes()
