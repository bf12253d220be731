"""MIMIC-CXR's DICOM files, converted: the published lists still know every image by its dicom_id."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlt.data.convert import ConversionSettings, convert
from medlt.data.deidentify import Profile
from medlt.data.layouts import LayoutResult, read_layout
from medlt.data.layouts.converted import pictures
from medlt.types import InputError


@pytest.fixture(scope="module")
def converted(dcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of `medlt convert`. Tests only read it."""
    out = tmp_path_factory.mktemp("converted") / "out"
    counts = convert(dcm, out, ConversionSettings(size=32), workers=1)
    assert counts["converted"] == len(list(dcm.rglob("*.dcm")))
    return out


def known(dcm: Path) -> set[str]:
    """The dicom_id of every file."""
    return {file.stem for file in dcm.rglob("*.dcm")}


def assert_right(result: LayoutResult, table: pd.DataFrame, expected: set[str]) -> None:
    """Each row has the patient and study of its dicom_id, and an image of its own that exists."""
    rows = result.manifest.rows
    assert set(rows.index) == expected
    entries = table.set_index("dicom_id").loc[rows.index]
    assert list(rows["patient_id"]) == list(entries["subject_id"].astype(str))
    assert list(rows["study_id"]) == list(entries["study_id"].astype(str))
    assert rows["path"].is_unique
    assert not any(uid in path for uid, path in rows["path"].items())
    result.manifest.check_files()


@pytest.mark.parametrize(("layout", "options"), [
    ("mimic-cxr-lt", {"release": "2022"}),
    ("mimic-cxr-lt", {"release": "2023"}),
    ("mimic-cxr-lt", {"release": "chexpert", "all_zero": "keep"}),
    ("cxr-lt", {"release": "2023"}),
    ("cxr-lt", {"release": "2024", "task": "1"}),
])  # fmt: skip
def test_lists_elsewhere_find_converted_images(
    jpg: Path, dcm: Path, converted: Path, table: pd.DataFrame, layout: str, options: dict[str, str]
) -> None:
    result = read_layout(layout, jpg, {"images": converted, **options})
    assert_right(result, table, known(dcm))
    views = table.set_index("dicom_id").loc[result.manifest.rows.index, "ViewPosition"]
    assert result.manifest.rows["view"].fillna("").tolist() == views.fillna("").tolist()  # of the metadata table


def test_each_image_is_that_of_its_dicom_id(jpg: Path, dcm: Path, converted: Path) -> None:
    """The pixels of a row are those of a conversion of its source file alone."""
    rows = read_layout("mimic-cxr-lt", jpg, {"images": converted, "release": "2022"}).manifest.rows
    for file in sorted(dcm.rglob("*.dcm"))[:3]:
        alone = converted.parent / f"alone-{file.stem}"
        convert(file, alone, ConversionSettings(size=32), workers=1)
        (image,) = (alone / "images").iterdir()
        with Image.open(image) as first, Image.open(converted / rows.at[file.stem, "path"]) as second:
            np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_lists_inside_and_views_of_the_tags(
    jpg: Path, dcm: Path, converted: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    """One folder with lists and conversion, without the metadata table, as a user of MIMIC-CXR has it."""
    src = tmp_path / "src"
    shutil.copytree(converted, src / "converted")
    shutil.copytree(jpg / "labels", src / "labels")
    result = read_layout("mimic-cxr-lt", src, {})
    assert_right(result, table, known(dcm))
    manifest = pd.read_parquet(converted / "manifest.parquet").set_index("path")["view"]
    read = result.manifest.rows
    assert list(read["view"]) == [manifest[path.removeprefix("converted/")] for path in read["path"]]
    assert "no mimic-cxr-2.0.0-metadata.csv: view is that of the DICOM files that were converted" in result.notes
    assert not any("not read" in note for note in result.notes)

    shutil.copy(jpg / "mimic-cxr-2.0.0-chexpert.csv.gz", src)
    assert_right(read_layout("mimic-cxr-lt", src, {"release": "chexpert", "all_zero": "keep"}), table, known(dcm))


def test_nothing_leads_back_from_a_deidentified_release(jpg: Path, dcm: Path, tmp_path: Path) -> None:
    settings = ConversionSettings(size=32, profile=Profile.parse("basic"), key=b"k" * 32)
    convert(dcm, tmp_path / "out", settings, workers=1)
    release = tmp_path / "out" / "release"
    assert list((release / "images").iterdir())
    names = {part for file in release.rglob("*") for part in file.relative_to(release).parts}
    assert not any(uid in name for uid in known(dcm) for name in names)
    with pytest.raises(InputError, match=r"none of the \d+ labelled images is below it"):
        read_layout("mimic-cxr-lt", jpg, {"images": release, "release": "2022"})
    text = pd.read_parquet(release / "manifest.parquet").to_csv()
    assert not any(uid in text for uid in known(dcm))


def test_a_damaged_conversion_is_named(jpg: Path, converted: Path, tmp_path: Path) -> None:
    src = shutil.copytree(converted, tmp_path / "src")
    (src / "manifest.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"manifest\.parquet: not readable as parquet"):
        read_layout("mimic-cxr-lt", jpg, {"images": src, "release": "2022"})


def test_of_a_cine_the_first_frame_has_the_name(tmp_path: Path) -> None:
    """Frames are named by digests, in any order; a manifest of another kind beside a sources.csv changes nothing."""
    paths = ["images/a.png", "images/b.png", "images/c.png"]
    rows = pd.DataFrame({"path": paths, "source": ["s1", "s1", "s2"], "frame": [2, 1, 1], "view": ["AP", "AP", ""]})
    rows.to_parquet(tmp_path / "manifest.parquet")
    pd.DataFrame({"source": ["s1", "s2"], "file": ["p1/cine.dcm", "p2/one"]}).to_csv(tmp_path / "sources.csv")
    files = [*paths, "manifest.parquet", "sources.csv"]
    assert list(pictures(tmp_path, files)["stem"]) == ["a", "cine", "one"]
    assert list(pictures(tmp_path, files)["source"]) == ["images/a.png", "p1/cine.dcm", "p2/one"]
    rows.drop(columns="source").to_parquet(tmp_path / "manifest.parquet")
    assert list(pictures(tmp_path, files)["stem"]) == ["a", "b", "c"]
