"""Folders of images that another program made: which rows and labels they give, and errors that name the table."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medlt.data.image_folder import read_image_folder
from medlt.types import InputError

FINDINGS = ("Hernia", "Mass")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        Image.new("L", (8, 8), 99).save(tmp_path / f"{name}.png")
    return tmp_path


def test_labels_come_from_columns_of_findings(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "file_name,Mass,other,synthetic\na.png,1,5,True\nb.png,,x,True\nc.png,0.5,,False\n"
    )
    made = read_image_folder(folder, FINDINGS).manifest
    assert list(made.rows.index) == ["a", "b"]
    assert np.array_equal(made.labels(), [[np.nan, 1], [np.nan, np.nan]], equal_nan=True)
    assert made.rows["synthetic"].all()
    assert made.file("a").is_file()


def test_labels_come_from_names_of_findings_and_another_table(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = tmp_path_factory.mktemp("elsewhere") / "labels.csv"
    table.write_text("uid,path,label,view\none,a.png,Mass,PA\ntwo,b.png,Hernia,\n")
    made = read_image_folder(folder, FINDINGS, table).manifest
    assert made.rows["finding"].to_dict() == {"one": "Mass", "two": "Hernia"}
    assert np.array_equal(made.labels(), [[np.nan, 1], [1, np.nan]], equal_nan=True)
    assert made.rows["view"].to_list() == ["PA", ""]


def test_the_splits_of_an_imagefolder_are_read(folder: Path) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        (folder / split).mkdir()
        (folder / f"{name}.png").rename(folder / split / f"{name}.png")
        (folder / split / "metadata.csv").write_text(f"file_name,Mass\n{name}.png,1\n")
    assert set(read_image_folder(folder, FINDINGS).manifest.rows.index) == {"a", "b"}


def test_an_unreadable_image_is_listed_and_the_others_are_read(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no image")
    (folder / "metadata.csv").write_text("file_name,Mass\na.png,1\nb.png,1\ngone.png,1\n")
    read = read_image_folder(folder, FINDINGS)
    assert list(read.manifest.rows.index) == ["a"]
    assert [Path(name).name for name, reason in read.failures if reason] == ["b.png", "gone.png"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "has no metadata.csv; write one, or give a table with --labels"),
        ("name,Mass\na.png,1\n", "missing column 'file_name'"),
        ("file_name,mass\na.png,1\n", "missing column 'Hernia'"),
        ("file_name,Mass\na.png,-1\n", "Mass is '-1'; write 1, 0"),
        ("file_name,label\na.png,Masses\n", "'Masses' is no finding of the run; did you mean 'Mass'"),
        ("file_name,Mass\na.png,1\nsub/a.png,1\n", "two images are named 'a'"),
        ("file_name,Mass\nx.png,1\n", "no image is readable"),
    ],
)
def test_a_mistake_is_one_clear_line(folder: Path, table: str | None, message: str) -> None:
    if table is not None:
        (folder / "metadata.csv").write_text(table)
    with pytest.raises(InputError, match=message) as error:
        read_image_folder(folder, FINDINGS)
    assert "\n" not in str(error.value)
