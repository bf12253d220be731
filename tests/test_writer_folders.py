"""Published images beyond the limit of a folder are in subfolders, and every table names them there."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image

from medlt.data.manifest import Manifest
from medlt.types import Batch, InputError
from medlt.writer import DatasetWriter, write_dicom, write_metadata

COUNT = 12
UIDS = [f"u{number}" for number in range(COUNT)]


@pytest.fixture
def writer(tmp_path: Path) -> DatasetWriter:
    """A writer with a shard of twelve different images."""
    uids = pd.Index(UIDS, name="uid")
    images = torch.arange(COUNT * 16, dtype=torch.float32).reshape(COUNT, 1, 4, 4) / (COUNT * 16)
    made = DatasetWriter(tmp_path, models="0123456789abcdef", run_id="fedcba9876543210")
    rows, labels = pd.DataFrame({"seed": range(COUNT)}, uids), pd.DataFrame({"Mass": 1.0}, uids)
    made.write(rows, Batch(rows, images, labels), [], UIDS)
    return made


def names(folder: Path) -> set[str]:
    """All PNG files below images/."""
    return {path.relative_to(folder).as_posix() for path in (folder / "images").rglob("*.png")}


@pytest.mark.parametrize("limit", [1, 3, COUNT, COUNT + 1])
def test_no_folder_holds_more_than_the_limit(writer: DatasetWriter, tmp_path: Path, limit: int) -> None:
    paths = writer.publish(UIDS, limit)
    rows = writer.kept().assign(path=paths, method="noise", models="0123456789abcdef")
    write_metadata(tmp_path, rows, ["Mass"], parents=False)
    write_dicom(tmp_path, rows, ["Mass"])
    for place in ("images", "dicom"):
        folders = Counter(path.parent for path in (tmp_path / place).rglob("*") if path.is_file())
        assert max(folders.values()) <= limit
    assert names(tmp_path) == set(paths)
    assert (paths == [f"images/{uid}.png" for uid in UIDS]) is (limit > COUNT)
    with (tmp_path / "images" / "metadata.csv").open(newline="") as handle:
        assert [f"images/{row['file_name']}" for row in csv.DictReader(handle)] == paths
    for uid, path in zip(UIDS, paths, strict=True):
        with Image.open(tmp_path / path) as image:
            pixels = np.asarray(image)
        assert (pixels == writer.read([uid])[0, 0].numpy()).all()
        (dicom,) = (tmp_path / "dicom").rglob(f"{uid}.dcm")
        assert (pydicom.dcmread(dicom).pixel_array == pixels).all()


def test_another_limit_leaves_no_image_twice(writer: DatasetWriter, tmp_path: Path) -> None:
    flat = writer.publish(UIDS)
    before = {path: (tmp_path / path).read_bytes() for path in flat}
    inside = writer.publish(UIDS, 3)
    assert names(tmp_path) == set(inside)
    assert {path.name: path.read_bytes() for path in (tmp_path / "superseded").rglob("*.png")} == {
        Path(path).name: data for path, data in before.items()
    }
    assert writer.publish(UIDS, 3) == inside
    stamps = {path: (tmp_path / path).stat().st_mtime_ns for path in inside}
    writer.publish(UIDS, 3)
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in inside} == stamps


def test_a_manifest_reads_them(writer: DatasetWriter, tmp_path: Path) -> None:
    rows = writer.kept().assign(
        path=writer.publish(UIDS, 3), patient_id=UIDS, split="train", view="PA", synthetic=True, No=0.0
    )
    Manifest(rows, ("Mass", "No"), tmp_path).write(tmp_path / "manifest.parquet")
    Manifest.read(tmp_path / "manifest.parquet").check_files()


@pytest.mark.parametrize("place", ["images", "dicom"])
def test_a_link_in_place_of_a_subfolder_is_refused(writer: DatasetWriter, tmp_path: Path, place: str) -> None:
    paths = writer.publish(UIDS, 3)
    rows = writer.kept().assign(path=paths, method="noise", models="0123456789abcdef")
    write_dicom(tmp_path, rows, ["Mass"])
    (outside := tmp_path / "outside").mkdir()
    inside = (tmp_path / paths[0]).parent.name
    for path in (tmp_path / place / inside).iterdir():
        path.unlink()
    (tmp_path / place / inside).rmdir()
    (tmp_path / place / inside).symlink_to(outside)
    with pytest.raises(InputError, match=rf"{place}/{inside}: is a link"):
        writer.publish(UIDS, 3) if place == "images" else write_dicom(tmp_path, rows, ["Mass"])
    assert list(outside.iterdir()) == []
