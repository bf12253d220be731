"""What verify says of pictures, tables and other files, and of the release of a conversion as a whole."""

import gzip
import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin
from pydicom import dcmread
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.convert.encode import encode
from medlt.data.verify import verify
from medlt.types import InputError

PLAIN = (np.add.outer(np.arange(64), np.arange(80)) * 1.5).astype(np.uint8)


def leaks(folder: Path) -> list[str]:
    return [what for _, what in verify(folder).leaks]


@pytest.mark.parametrize(("kind", "suffix"), [("png", "png"), ("png16", "png"), ("jpeg", "jpg"), ("nifti", "nii.gz")])
def test_pictures_of_a_conversion_hold_nothing_else(tmp_path: Path, kind: str, suffix: str) -> None:
    pixels = PLAIN if kind != "png16" else PLAIN.astype(np.uint16) * 257
    (tmp_path / f"a.{suffix}").write_bytes(encode(pixels, kind, 90, (0.2, 0.2), None, None))
    assert leaks(tmp_path) == []


def test_text_chunks_of_a_png(tmp_path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "SMITH JOHN")
    Image.fromarray(PLAIN).save(tmp_path / "a.png", pnginfo=about)
    (tmp_path / "b.png").write_bytes(encode(PLAIN, "png", 90, None, None, None) + b"SMITH JOHN")
    assert leaks(tmp_path) == ["a chunk 'tEXt'", "bytes behind the end of the image"]


def test_exif_and_comments_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SMITH JOHN"
    Image.fromarray(PLAIN).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(PLAIN).save(tmp_path / "b.jpg", comment=b"SMITH JOHN")
    assert leaks(tmp_path) == ["an application segment", "a comment segment"]


def test_a_nifti_with_words(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(PLAIN[..., None].astype(np.int16), np.eye(4))
    image.header["descrip"] = b"SMITH JOHN"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"SMITH JOHN"))
    whole = image.to_bytes() + b"SMITH"
    (tmp_path / "a.nii").write_bytes(whole)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nibabel.Nifti1Image(PLAIN[..., None], np.eye(4)).to_bytes()))
    with (tmp_path / "c.nii.gz").open("wb") as target, gzip.GzipFile("SMITH.nii", "wb", fileobj=target) as file:
        file.write(nibabel.Nifti1Image(PLAIN[..., None], np.eye(4)).to_bytes())
    fields = ["a text in the header field descrip", "header extensions", "bytes behind the voxels"]
    assert leaks(tmp_path) == [*fields, "a name or a comment in the gzip header"]


def test_text_in_a_picture_and_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    pixels = np.full((300, 300), 90, np.uint8)
    cv2.putText(pixels, "SMITH JOHN", (40, 150), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 2)
    (tmp_path / "a.png").write_bytes(encode(pixels, "png", 90, None, None, None))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR") + bytes(40))
    first, *rest = leaks(tmp_path)
    assert "look like text" in first
    assert any("cannot be read as png" in what for what in rest)


def test_tables(tmp_path: Path) -> None:
    own = {"patient_id": ["ABCDEFGHIJKLMNOP"], "accession": [""], "study_uid": ["2.25.7"], "blake3_in": [""]}
    pd.DataFrame(own | {"bytes_in": [0], "note": ["no window"]}, index=["u"]).to_parquet(tmp_path / "a.parquet")
    assert leaks(tmp_path) == []
    bad = {"patient_id": ["MRN-77"], "study_uid": ["1.2.826.7"], "blake3_in": ["ab12"], "note": ["see http://pacs/1"]}
    pd.DataFrame(bad, index=["u"]).to_parquet(tmp_path / "b.parquet")
    assert leaks(tmp_path) == [
        "column patient_id with other values than medlt's pseudonyms",
        "column study_uid with UIDs that are not under 2.25",
        "column blake3_in, which describes the source's files",
        "column note with addresses",
    ]


def test_what_nothing_can_judge_is_reported(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("call Mrs Smith")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.zip").write_bytes(b"PK\x03\x04" + zlib.compress(b"x"))
    (tmp_path / "elsewhere").symlink_to("/")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    result = verify(tmp_path)
    assert {file for file, _ in result.leaks} == {"notes.txt", "deep/a.zip", "elsewhere", "gone"}
    assert result.files == 4


def test_a_file_in_the_release_of_a_stranger(tmp_path: Path) -> None:
    """A DICOM file of another tool: the claims are not trusted, and no content is quoted."""
    from .conftest import stranger

    (tmp_path / "film.dcm").write_bytes(stranger())
    text = "\n".join(leaks(tmp_path))
    for part in ("PatientName", "PatientBirthDate", "StudyDate", "OtherPatientIDs", "private attribute", "PatientAge"):
        assert part in text
    assert "that is not under 2.25" in text
    assert "cannot be read" not in text
    assert not [word for word in ("Smith", "1961", "93Y") if word in text]


def test_pixels_that_nothing_examines_are_reported(tmp_path: Path) -> None:
    from .conftest import stranger

    data = dcmread(BytesIO(stranger()))
    data.FloatPixelData, data.BitsAllocated = np.zeros(64 * 64, np.float32).tobytes(), 32
    del data.PixelData
    data.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    assert any("floating-point" in what for what in leaks(tmp_path))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(PLAIN, "png", 90, None, None, None))
    done = CliRunner().invoke(app, ["deidentify", "verify", str(tmp_path), "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"files": 1, "leaks": []})
    done = CliRunner().invoke(app, ["deidentify", "verify", str(tmp_path)])
    assert "1 files examined" in done.stdout
    (tmp_path / "b.txt").write_text("x")
    done = CliRunner().invoke(app, ["deidentify", "verify", str(tmp_path), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["leaks"][0]["file"] == "b.txt"
    assert "1 place(s) to see to" in done.stderr
    done = CliRunner().invoke(app, ["deidentify", "verify", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    with pytest.raises(InputError, match="no file to examine"):
        verify(tmp_path / "nowhere")
