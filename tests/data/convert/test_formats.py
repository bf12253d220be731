"""Every preset into every format through the command, read back by other people's readers; every kind of input."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from blake3 import blake3
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.convert import ConversionSettings
from medlt.data.convert.one import convert_one
from medlt.data.deidentify import Profile
from medlt.data.dicom import read_dicom
from medlt.data.images import read_image
from medlt.types import InputError

Write = Callable[..., Path]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TAGS = {"WindowCenter": 2048, "WindowWidth": 3000, "ImagerPixelSpacing": [0.2, 0.199], "StudyInstanceUID": "1.2.3"}


def one(path: Path, out: Path, settings: ConversionSettings) -> dict[str, Any]:
    """The row of one file converted in this process."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    outcome = convert_one(path, out, settings)
    assert outcome.reason == ""
    (row,) = outcome.rows
    return row


@pytest.mark.parametrize("kind", ["png", "png16", "nifti"])
def test_the_viewer_preset_holds_what_read_dicom_shows(write_dicom: Write, tmp_path: Path, kind: str) -> None:
    path = write_dicom(RAMP, **TAGS)
    row = one(path, tmp_path / "out", ConversionSettings(format=kind))
    file = tmp_path / "out" / row["path"]
    if kind == "nifti":
        image = nibabel.load(file)
        pixels, top = np.asarray(image.dataobj)[:, :, 0].T, 65535
        np.testing.assert_allclose(image.header.get_zooms()[:2], (0.199, 0.2), rtol=1e-6)
    else:
        pixels, top = np.asarray(Image.open(file)), {"png": 255, "png16": 65535}[kind]
    np.testing.assert_allclose(pixels / top, read_dicom(path).pixels, atol=0.5001 / top + 1e-5)
    assert (row["out_rows"], row["out_columns"], row["rows"]) == (64, 64, 64)
    assert row["window"] == "LINEAR centre 2048 width 3000"


def test_linear16_as_nifti_gives_the_modality_values(write_dicom: Write, tmp_path: Path) -> None:
    path = write_dicom(RAMP, RescaleSlope=2, RescaleIntercept=-500, PhotometricInterpretation="MONOCHROME1")
    row = one(path, tmp_path / "out", ConversionSettings(preset="linear16", format="nifti"))
    values = nibabel.load(tmp_path / "out" / row["path"]).get_fdata()[:, :, 0].T
    np.testing.assert_allclose(values, 2.0 * RAMP - 500, atol=8190 / 65535)


def test_the_spacing_grows_as_the_image_shrinks(write_dicom: Write, tmp_path: Path) -> None:
    row = one(write_dicom(RAMP, **TAGS), tmp_path / "out", ConversionSettings(size=16, format="nifti"))
    zooms = nibabel.load(tmp_path / "out" / row["path"]).header.get_zooms()
    np.testing.assert_allclose(zooms[:2], (0.796, 0.8), rtol=1e-6)
    assert (row["row_spacing_mm"], row["column_spacing_mm"]) == (0.2, 0.199)


def test_quality_and_digests_are_recorded(write_dicom: Write, tmp_path: Path) -> None:
    path = write_dicom(RAMP, **TAGS)
    row = one(path, tmp_path / "out", ConversionSettings(preset="mimic-cxr-jpg", format="jpeg", quality=71))
    data = (tmp_path / "out" / row["path"]).read_bytes()
    assert row["quality"] == 71
    assert row["blake3_in"] == blake3(path.read_bytes()).hexdigest()
    assert row["sha256_out"] == hashlib.sha256(data).hexdigest()
    assert row["uid"] == row["blake3_in"][:24]


@pytest.mark.parametrize("kind", ["png", "jpeg", "nifti"])
def test_pictures_and_volumes_come_in_as_they_are(tmp_path: Path, kind: str) -> None:
    pixels = (np.add.outer(np.arange(40), np.arange(60)) * 2).astype(np.uint8)
    path = tmp_path / f"film.{kind}"
    if kind == "nifti":
        path = tmp_path / "film.nii"
        nibabel.Nifti1Image(pixels.T[:, :, None], np.diag([-1.0, -1.0, 1.0, 1.0])).to_filename(path)
    else:
        Image.fromarray(pixels).save(path, kind, **({"quality": 100} if kind == "jpeg" else {}))
    row = one(path, tmp_path / "out", ConversionSettings(format="png16"))
    made = np.asarray(Image.open(tmp_path / "out" / row["path"])) / 65535
    np.testing.assert_allclose(made, read_image(path), atol=1e-4)
    assert row["transfer_syntax"] == kind
    assert made.shape == (row["rows"], row["columns"]) == (40, 60)


@pytest.mark.parametrize("name", ["film.png", "film.jpg", "film.nii"])
def test_a_picture_never_passes_for_de_identified(tmp_path: Path, name: str) -> None:
    """A profile acts on DICOM; files it did not inspect must not be among the cleaned ones."""
    path = tmp_path / name
    pixels = np.zeros((40, 60), np.uint8)
    if name.endswith("nii"):
        nibabel.Nifti1Image(pixels, np.eye(4)).to_filename(path)
    else:
        Image.fromarray(pixels).save(path)
    (tmp_path / "out/images").mkdir(parents=True)
    outcome = convert_one(
        path, tmp_path / "out", ConversionSettings(profile=Profile.parse("basic"), key=bytes(range(32)))
    )
    assert outcome.reason == "not_deidentified"
    assert list((tmp_path / "out/images").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "nice"}, "use one of viewer"),
        ({"format": "tiff"}, "use one of png"),
        ({"size": 0}, "1 pixel or more"),
        ({"quality": 101}, "between 1 and 100"),
        ({"preset": "linear16"}, "use --format png16"),
        ({"preset": "chexpert", "format": "png16"}, "makes 8 bits"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        ConversionSettings(**given)
    assert "\n" not in str(error.value)


def test_the_command_says_what_it_did_and_exits_by_it(write_dicom: Write, tmp_path: Path) -> None:
    write_dicom(RAMP, **TAGS)
    (tmp_path / "notes.txt").write_text("no image")
    source, out = tmp_path, tmp_path.parent / f"{tmp_path.name}-out"
    command = ["convert", str(source), str(out), "--size", "32", "--workers", "1", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    summary = json.loads(done.stdout)
    assert (summary["converted"], summary["skipped"], summary["failed"]) == (1, 1, 0)
    manifest = pd.read_parquet(out / "manifest.parquet")
    assert (out / manifest["path"].iloc[0]).is_file()
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "image.dcm").read_bytes()[:-500])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    failures = pd.read_csv(out / "failures.csv")
    assert dict(zip(failures["reason"], failures["kind"], strict=True)) == {
        "not_dicom": "skipped",
        "truncated": "failed",
    }
    assert pd.read_parquet(out / "manifest.parquet").equals(manifest)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--engine", "spark"], "use local, or ray"),
        (["--ray-address", "auto"], "which alone has --ray-address"),
        (["--preset", "nice"], "use one of"),
        (["--deidentify", "basic"], "--key"),
        (["--deidentify", "advanced"], "basic"),
    ],
)
def test_a_wrong_option_is_one_line_exit_2_and_no_folder(
    write_dicom: Write, tmp_path: Path, given: list[str], words: str
) -> None:
    write_dicom(RAMP)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    done = CliRunner().invoke(app, ["convert", str(tmp_path), str(out), *given])
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
