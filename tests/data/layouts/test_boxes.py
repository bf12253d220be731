"""`medlt manifest --boxes`: every layout takes a table of boxes, as `Collection.with_boxes` does."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import medlt
from medlt.cli import app
from medlt.data.manifest import Manifest
from medlt.data.regions import Regions

LIST = """Image Index,Finding Label,Bbox [x,y,w,h],,,
00000003_000.png,Mass,100.5,200,300,400.25,,,
00000003_000.png,Mass,600,64,64,64,,,
00000003_000.png,Infiltrate,0,512,256,512,,,
00000005_001.png,Nodule,10,20,30,40,,,
00000077_000.png,Mass,10,20,30,40,,,
00000077_000.png,Mass,50,60,30,40,,,
00000078_002.png,Nodule,10,20,30,40,,,
"""
"""Seven boxes in pixels of 1024 x 1024, with the published header. Two of the images are not in the collection."""
NIH14 = ("--release", "nih14")


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, ["manifest", *map(str, args)])


@pytest.fixture
def nih(touch: Callable[[Iterable[str]], Path], put: Callable[..., Path], tmp_path: Path) -> Path:
    """ChestX-ray14 of four images, as its archives unpack them, with its table of boxes beside the folder."""
    names = ["00000003_000.png", "00000004_000.png", "00000005_000.png", "00000005_001.png"]
    src = touch(f"images_001/images/{name}" for name in names)
    columns = {"Image Index": names, "Finding Labels": ["Mass|Infiltration", "No Finding", "Hernia", "Nodule"],
               "Patient ID": [3, 4, 5, 5], "Patient Age": 50, "Patient Gender": "F", "View Position": "PA"}  # fmt: skip
    put("Data_Entry_2017.csv", **columns)
    (tmp_path / "BBox_List_2017.csv").write_text(LIST)
    return src


def test_a_manifest_file_holds_the_boxes_of_with_boxes(nih: Path, tmp_path: Path) -> None:
    table = tmp_path / "BBox_List_2017.csv"
    done = invoke("nih-cxr-lt", nih, tmp_path / "m.parquet", *NIH14, "--boxes", table, "--json")
    assert done.exit_code == 0, done.stderr
    read = Manifest.read(tmp_path / "m.parquet")
    wanted = medlt.Collection.from_layout("nih-cxr-lt", nih, release="nih14").with_boxes(table).manifest
    assert read.digest() == wanted.digest()
    assert Regions.of(read).digest() == Regions.of(wanted).digest() != Regions().digest()
    corners = np.array([[100.5, 200, 400.5, 600.25], [600, 64, 664, 128]]) / 1024
    np.testing.assert_allclose(np.reshape(read.rows.at["00000003_000", "box_Mass"], (2, 4)), corners, rtol=1e-12)


def test_the_summary_counts_boxes_images_and_boxes_without_an_image(nih: Path, tmp_path: Path) -> None:
    command = ("nih-cxr-lt", nih, tmp_path / "m.parquet", *NIH14, "--boxes", tmp_path / "BBox_List_2017.csv")
    summary = json.loads(invoke(*command, "--json").stdout)
    assert summary["boxes"] == {"count": 4, "images": 2}
    assert summary["orphans"]["box_without_image"] == {
        "count": 3,
        "examples": ["00000077_000.png", "00000077_000.png", "00000078_002.png"],
    }
    lost = pd.read_csv(tmp_path / "m.orphans.csv", dtype=str)
    assert lost["uid"].tolist() == ["00000077_000", "00000077_000", "00000078_002"]
    shown = invoke(*command).stdout
    assert "boxes: 4, of 2 images" in shown
    assert "box without image: 3, such as 00000077_000.png" in shown


def test_boxes_of_findings_that_the_lists_lack_are_counted(nih: Path, tmp_path: Path, put: Callable[..., Path]) -> None:
    put("nih-cxr-lt_single-label_train.csv", id=["00000003_000.png", "00000005_001.png"], Mass=[1, 0], Hernia=[0, 1],
        subject_id=[3, 5])  # fmt: skip
    done = invoke("nih-cxr-lt", nih, tmp_path / "m.parquet", "--release", "2022", "--json", "--boxes",
                  tmp_path / "BBox_List_2017.csv")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert "3 box(es) of findings that the collection does not have, ignored" in summary["notes"]
    assert (summary["boxes"], summary["orphans"]["box_without_image"]["count"]) == ({"count": 2, "images": 1}, 2)


@pytest.mark.parametrize("layout", ["csv", "folder"])
def test_other_layouts_take_a_table_of_your_own(folder: Path, layout: str) -> None:
    """In pixels of the files, which are 20 px wide and 12 px high; a name is a file name, with its suffix or not."""
    rows = "0,A,0,0,20,12", "images/0.png,A,5,3,10,6", "gone,B,0,0,9,9"
    (folder / "boxes.csv").write_text("\n".join(["uid,finding,x,y,width,height", *rows]))
    source = {"csv": [folder / "labels.csv"], "folder": [folder]}[layout]
    more = {"csv": [], "folder": ["--labels", folder / "labels.csv", "--key", "path"]}[layout]
    done = invoke(layout, *source, folder / "m.parquet", "--findings", "A,B,No_Finding", *more, "--boxes",
                  folder / "boxes.csv", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["boxes"] == {"count": 2, "images": 1}
    (corners,) = Manifest.read(folder / "m.parquet").rows["box_A"].dropna()
    np.testing.assert_allclose(corners, [0, 0.2, 1, 0.8, 0.25, 0.35, 0.75, 0.65])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "boxes.csv: no such table; check the path"),
        ("image,x\na,3\n", "boxes.csv: missing column 'uid'"),
        ("Image Index,Finding Label,x\n00000003_000.png,Mass,3\n", "a box needs x, y, w and h"),
        ("Image Index,Finding Label,x,y,w,h\n1.png,Mass,3,3,3,3\n", "check the names of its images, such as 1.png"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line_and_nothing_is_written(
    nih: Path, tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "boxes.csv").write_text(text)
    done = invoke("nih-cxr-lt", nih, tmp_path / "m.parquet", *NIH14, "--boxes", tmp_path / "boxes.csv")
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("m.*"))


def test_the_names_of_alias_count_in_a_table_of_boxes_too(nih: Path, tmp_path: Path, put: Callable[..., Path]) -> None:
    """The collection calls it Lump, right; the table of NIH calls it Mass, and one of one's own uses either name."""
    own = put("boxes.csv", uid=["00000003_000", "00000005_001"], finding=["Lump, right", "mass"], x=0, y=0, width=512,
              height=256, image_width=1024, image_height=1024)  # fmt: skip
    for table, corners in ((own, [0, 0, 0.5, 0.25]), (tmp_path / "BBox_List_2017.csv", None)):
        out = tmp_path / f"{table.stem}.parquet"
        done = invoke("nih-cxr-lt", nih, out, *NIH14, "--alias", "Lump, right=Mass", "--boxes", table)
        assert done.exit_code == 0, done.stderr
        boxes = Manifest.read(out).rows["box_Lump, right"]
        assert len(boxes["00000003_000"]) == (4 if corners else 8)
        assert corners is None or boxes["00000003_000"] == boxes["00000005_001"] == corners
    done = invoke("nih-cxr-lt", nih, tmp_path / "m.parquet", *NIH14, "--alias", "Lump=Mass", "--boxes", own)
    assert done.exit_code == 2
    assert "finding 'Lump, right' of a box is not in the collection; use" in done.stderr
