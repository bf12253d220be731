"""A conversion of many files writes subfolders, resumes in them, and gives the same bytes for any number of workers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlt.data.convert import ConversionSettings, convert
from medlt.data.deidentify import Profile
from medlt.files import read_table

Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Forty pictures of different pixels."""
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(np.full((4, 5), number, np.uint8)).save(folder / f"{number}.png")
    return folder


def test_images_are_in_subfolders_from_the_limit_on(source: Path, tree: Tree, tmp_path: Path) -> None:
    flat = convert(source, tmp_path / "flat", ConversionSettings(), workers=1, limit=41)
    inside = convert(source, tmp_path / "inside", ConversionSettings(), workers=2, limit=40)
    assert flat == inside
    counts = Counter(path.parent for path in (tmp_path / "inside" / "images").rglob("*.png"))
    assert max(counts.values()) < 40
    one, other = (read_table(tmp_path / name / "manifest.parquet") for name in ("flat", "inside"))
    assert list(one.index) == list(other.index)
    assert list(one["path"]) == [f"images/{uid}.png" for uid in one.index]
    assert one.drop(columns="path").equals(other.drop(columns="path"))
    for uid in one.index:
        data = (tmp_path / "flat" / one.at[uid, "path"]).read_bytes()
        assert (tmp_path / "inside" / other.at[uid, "path"]).read_bytes() == data
    before = tree(tmp_path / "inside")
    convert(source, tmp_path / "inside", ConversionSettings(), workers=1, limit=40)
    assert tree(tmp_path / "inside") == before
    gone = tmp_path / "inside" / other["path"].iloc[7]
    gone.unlink()
    convert(source, tmp_path / "inside", ConversionSettings(), workers=1, limit=40)
    assert tree(tmp_path / "inside") == before


def test_a_source_that_grew_beyond_the_limit_goes_on(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, ConversionSettings(), workers=1, limit=41)
    (source / "more.png").write_bytes((source / "0.png").read_bytes() + b"\0")
    convert(source, out, ConversionSettings(), workers=1, limit=41)
    rows = read_table(out / "manifest.parquet")
    assert len(rows) == 41
    assert all((out / path).is_file() for path in rows["path"])
    assert {*(out / "images").rglob("*.png")} == {out / path for path in rows["path"]}  # nothing twice


def test_de_identified_files_too(film: Any, tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "in").mkdir()
    for number in range(12):
        (tmp_path / "in" / f"{number}.dcm").write_bytes(film(np.full((8, 9), number, np.uint16)))
    settings = ConversionSettings(profile=Profile.parse("basic"), key=b"k" * 32)
    counts = convert(tmp_path / "in", tmp_path / "out", settings, workers=1, limit=6)
    held = [
        path for name in ("release/dicom", "private/quarantine") for path in (tmp_path / "out" / name).rglob("*.dcm")
    ]
    assert len(held) == 12
    assert all(path.parent.name not in ("dicom", "quarantine") for path in held)
    before = tree(tmp_path / "out")
    assert convert(tmp_path / "in", tmp_path / "out", settings, workers=1, limit=6) == counts
    assert tree(tmp_path / "out") == before


def test_frames_of_one_file_are_in_a_folder_of_their_own(film: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    stack = np.arange(5, dtype=np.uint16)[:, None, None] + np.zeros((5, 6, 7), np.uint16)
    (tmp_path / "in" / "cine.dcm").write_bytes(film(stack, NumberOfFrames=5))
    (tmp_path / "in" / "film.dcm").write_bytes(film(stack[0] + 9))
    convert(tmp_path / "in", tmp_path / "out", ConversionSettings(frames="all"), workers=1)
    rows = read_table(tmp_path / "out" / "manifest.parquet")
    cine = rows[rows["frames"] == 5]
    first = cine.index[cine["frame"] == 1][0]
    assert [path.rpartition("/")[0] for path in cine["path"]] == [f"images/{first}"] * 5
    (film_path,) = rows.loc[rows["frames"] == 1, "path"]
    assert film_path.count("/") == 1
