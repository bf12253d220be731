"""Real radiographs as their manifest says, and pydicom's own test files: an image or a reason for every one."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom.data import get_testdata_files

from medlt.data.convert.reasons import HINTS
from medlt.data.dicom import Unreadable
from medlt.data.dicom.guard import open_dicom, stored_values

Run = Callable[..., Any]
EXPECTED = {
    "real/other_no_file_meta.dcm": "not_dicom",
    "real/bad_truncated_pixeldata.dcm": "truncated",
    "real/bad_VR.dcm": "not_an_image",
    "real/bad_no_pixeldata_rtplan.dcm": "not_an_image",
    "derived/bad_truncated.dcm": "truncated",
    "derived/bad_not_dicom.dcm": "not_dicom",
    "README.txt": "not_dicom",
    "manifest.csv": "not_dicom",
    "nih_dx_labels.csv": "not_dicom",
}
"""Every file of the set that is no image, and why."""
FILTERED = {
    "real/neg_modality_CT.dcm",  # a CT by its tag
    "real/neg_dx_thorax_canine_8bit.dcm",  # a dog, tagged THORAX
    "real/limb_cr_mono1_j2k_lossless.dcm",  # EXTREMITY
    "real/pattern_voi_lut_sequence.dcm",  # OT
    "real/pattern_modality_lut_sequence.dcm",
    "real/other_explicitBE.dcm",  # US
    "real/other_deflated.dcm",
    "real/other_rgb_rle.dcm",
    "real/other_ct_small.dcm",
    "real/bad_truncated_pixeldata.dcm",  # MR, and its pixels are not inspected
    "real/other_htj2k_rgb.dcm",  # no modality
}
"""What a filter for chest CR and DX leaves out, and why."""


@pytest.fixture(scope="module")
def listed(real_data: Path) -> pd.DataFrame:
    """manifest.csv, one row a DICOM file."""
    table = pd.read_csv(real_data / "dicom/manifest.csv", dtype=str, keep_default_na=False)
    return table[[(real_data / "dicom" / name).is_file() for name in table["file"]]].set_index("file")


@pytest.fixture(scope="module")
def converted(real_data: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(real_data / "dicom", tmp_path_factory.mktemp("real") / "out", workers=2)


@pytest.mark.real_data
def test_every_file_is_in_the_list_or_has_its_reason(listed: pd.DataFrame, converted: Any) -> None:
    assert len(listed) == 87
    readable = set(listed.index[listed["decode"] == "ok"])
    doubled = {name for name, reason in converted.reasons.items() if reason == "duplicate"}
    assert set(converted.rows) | doubled == readable
    assert {k: v for k, v in converted.reasons.items() if v != "duplicate"} == EXPECTED
    assert doubled == set()


@pytest.mark.real_data
def test_the_manifest_says_what_the_list_says(listed: pd.DataFrame, converted: Any) -> None:
    for name, row in converted.rows.items():
        expected_row = listed.loc[name]
        tags = {k: str(row[k]) for k in ("rows", "columns", "bits_stored", "photometric", "modality", "body_part")}
        expected = {
            "rows": expected_row["rows"],
            "columns": expected_row["cols"],
            "bits_stored": expected_row["bits_stored"],
            "photometric": expected_row["photometric"],
            "modality": expected_row["modality"],
            "body_part": expected_row["body_part"],
        }
        assert tags == expected, name
        assert row["view"] == expected_row["view"], name
        if expected_row["transfer_syntax"]:
            assert row["transfer_syntax"] == expected_row["transfer_syntax"], name
        else:
            assert "no transfer syntax" in row["notes"], name


@pytest.mark.real_data
def test_stored_pixels_are_the_listed_ones(real_data: Path, listed: pd.DataFrame) -> None:
    """Bit for bit, lossy streams too, unless the list's decoder and ours may round the lossy transform differently."""
    other = {}
    for name, expected_row in listed[listed["decode"] == "ok"].iterrows():
        path = real_data / "dicom" / str(name)
        values = stored_values(open_dicom(path)[0], path)
        little = values.astype(values.dtype.newbyteorder("<"))
        digest = hashlib.sha256(little.tobytes()).hexdigest()[:16]
        for column in ("stored_sha256_16", "expected_stored_sha256_16"):
            if expected_row[column] and expected_row[column] != digest:
                other[name] = expected_row["transfer_syntax"]
    assert other == {}


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["photo_mono2_inverted_pixels", "rescale_slope2_int-500", "no_window"])
def test_what_should_look_alike_does(converted: Any, name: str) -> None:
    """The README: these display like multi_window's first window, which is the full range; 8-bit rounding apart."""
    first = converted.pixels("derived/multi_window.dcm").astype(int)
    shown = converted.pixels(f"derived/{name}.dcm").astype(int)
    assert np.abs(shown - first).max() <= 1
    assert np.ptp(first) > 200


@pytest.mark.real_data
def test_one_image_in_ten_transfer_syntaxes_is_one_picture(converted: Any) -> None:
    first = converted.pixels("derived/ts_explicit_le.dcm").astype(int)
    for name in converted.rows:
        if name.startswith("derived/ts_"):
            apart = np.abs(converted.pixels(name).astype(int) - first)
            lossy = "near" in name or "lossy." in name
            assert apart.mean() < 1.5 if lossy else not apart.any(), name


@pytest.mark.real_data
def test_the_same_pixels_under_other_tags_are_reported(converted: Any) -> None:
    duplicated = {name for name, _, what in converted.duplicates if what == "pixels"}
    assert "derived/ts_rle.dcm" in duplicated or "derived/ts_implicit_le.dcm" in duplicated
    assert "real/chest_cr_jpegbaseline_mistagged_mono1.dcm" not in duplicated


@pytest.mark.real_data
def test_a_filter_for_chest_films_leaves_out_what_it_should(
    real_data: Path, listed: pd.DataFrame, run: Run, tmp_path: Path
) -> None:
    result = run(real_data / "dicom", tmp_path / "out", modalities=("CR", "DX"), body_parts=("CHEST",), workers=2)
    assert {name for name, reason in result.reasons.items() if reason == "filtered"} == FILTERED
    assert not [name for name in result.rows if "neg_" in name]
    kept = listed.loc[sorted(result.rows)]
    assert set(kept["modality"]) == {"CR", "DX"}
    assert set(kept["body_part"]) <= {"CHEST", ""}
    unlabelled = {name for name, row in result.rows.items() if "no body part" in row["notes"]}
    assert unlabelled == set(kept.index[kept["body_part"] == ""])
    assert result.counts["unlabelled_body_part"] == len(unlabelled)


@pytest.mark.real_data
def test_no_plain_name_of_a_source_leaves_the_owners_files(converted: Any) -> None:
    for path in converted.release.rglob("*"):
        if path.is_file() and path.name not in ("sources.csv",) and ".convert" not in path.parts:
            assert b"phi_synthetic" not in path.read_bytes()


def bundled() -> list[Path]:
    """pydicom's test files that lie on this disk."""
    return [path for name in get_testdata_files() if (path := Path(str(name))).is_file()]


def test_pydicoms_files_all_end_in_an_image_or_a_reason(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    files = {f"{i:03} {path.name}": path for i, path in enumerate(bundled())}
    for name, path in files.items():
        (tmp_path / "in" / name).write_bytes(path.read_bytes())
    result = run(tmp_path / "in", tmp_path / "out", workers=2)
    assert set(result.rows) | set(result.reasons) == set(files)
    assert len(result.rows) + len(result.reasons) == len(files) > 100
    assert set(result.reasons.values()) <= set(HINTS) - {"crashed", "timeout", "write_failed", "out_of_memory"}
    assert len(result.rows) > 50
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_pydicoms_files_refused_alone_are_refused_in_the_run(run: Run, tmp_path: Path) -> None:
    """The run gives the reason that reading the file alone gives."""
    (tmp_path / "in").mkdir()
    alone: dict[str, str] = {}
    for i, path in enumerate(bundled()[::7]):
        name = f"{i:03}"
        (tmp_path / "in" / name).write_bytes(path.read_bytes())
        try:
            stored_values(open_dicom(path)[0], path)
        except Unreadable as error:
            alone[name] = error.code
    result = run(tmp_path / "in", tmp_path / "out")
    assert {k: v for k, v in result.reasons.items() if v not in ("archive", "duplicate", "empty", "document")} == alone
