"""The layout of a collection by its tables' names and columns; what is refused names the command that helps."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest

from medlt.data.layouts.sniff import sniff
from medlt.types import InputError

Touch = Callable[[Iterable[str]], Path]
Put = Callable[..., Path]
NAMES = {
    "mimic-cxr-2.0.0-chexpert.csv.gz": "mimic-cxr-lt",
    "mimic-cxr-2.0.0-split.csv.gz": "mimic-cxr-lt",
    "mimic-cxr-lt_single-label_train.csv": "mimic-cxr-lt",
    "miccai2023_mimic-cxr-lt_labels_train.csv": "mimic-cxr-lt",
    "mimic-lt_single-label_test.csv": "mimic-cxr-lt",
    "Data_Entry_2017_v2020.csv": "nih-cxr-lt",
    "miccai2023_nih-cxr-lt_labels_val.csv": "nih-cxr-lt",
    "train_labeled.csv": "cxr-lt",
    "development_labeled_task2.csv": "cxr-lt",
    "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv": "padchest",
    "image_labels_train.csv": "vindr",
    "stage_2_train_labels.csv": "rsna",
    "train-rle.csv": "siim",
    "df_chexpert_plus_240401.csv": "chexpert",
}
COLUMNS = {
    "chexpert": ("Path", "Frontal/Lateral", "Edema"),
    "vindr": ("image_id", "class_name", "rad_id", "x_min"),
    "nih-cxr-lt": ("Image Index", "Finding Labels"),
    "siim": ("ImageId", " EncodedPixels"),
    "csv": ("path", "patient_id", "Mass"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_published_table_names_its_layout_as_a_file_and_in_its_folder(name: str, put: Put, touch: Touch) -> None:
    table = put(f"tables/{name}", a=[1])
    touch(["files/1.png"])
    assert sniff(table).layout == NAMES[name]
    seen = sniff(table.parents[1])
    assert (seen.layout, seen.source) == (NAMES[name], table.parents[1])


@pytest.mark.parametrize("layout", COLUMNS)
def test_a_table_of_another_name_is_known_by_its_columns(layout: str, put: Put) -> None:
    assert sniff(put("train.csv", **{name: ["a"] for name in COLUMNS[layout]})).layout == layout


def test_a_table_that_cannot_be_read_hides_no_other(put: Put, touch: Touch) -> None:
    src = touch(["1.png", "a_broken.csv"])
    put("train.csv", **{name: ["a"] for name in COLUMNS["chexpert"]})
    assert sniff(src).layout == "chexpert"


def test_folders_with_labels_or_with_classes(put: Put, touch: Touch, tmp_path: Path) -> None:
    src = touch(["Mass/1.png", "Hernia/2.png"])
    assert (sniff(src).layout, sniff(src).options) == ("folder", {})
    table = put("../labels.csv", uid=[1], Mass=[1])
    assert sniff(src, table).options == {"labels": table}
    rows = pd.DataFrame({"uid": ["1"], "path": ["1.png"]})
    rows.to_parquet(src / "manifest.parquet")
    assert sniff(src, table).layout == "folder"
    rows.attrs["findings"] = ["Mass"]
    rows.to_parquet(src / "manifest.parquet")
    assert (sniff(src).layout, sniff(src).source) == ("manifest", src / "manifest.parquet")


def test_what_cannot_be_read_names_the_command_that_helps(put: Put, touch: Touch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        sniff(tmp_path / "lost")
    (tmp_path / "note.txt").touch()
    with pytest.raises(InputError, match="is no table"):
        sniff(tmp_path / "note.txt")
    src = touch(["a.dcm", "b.dcm"])
    with pytest.raises(InputError, match=f"medlt convert {src} converted, then medlt init converted --labels"):
        sniff(src)
    (src / "b.dcm").rename(src / "b.png")
    (src / "a.dcm").rename(src / "a.png")
    with pytest.raises(InputError, match="no labels; give them with --labels"):
        sniff(src)
    with pytest.raises(InputError, match="--labels is for a folder"):
        sniff(put("t.csv", uid=[1]), tmp_path / "labels.csv")
    pd.DataFrame({"uid": ["1"], "path": ["1.png"]}).to_parquet(src / "manifest.parquet")
    with pytest.raises(InputError, match="is a converted folder without labels"):
        sniff(src)
