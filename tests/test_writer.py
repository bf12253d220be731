import io
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image

from medlt.data.images import read_image
from medlt.types import Batch, Finding
from medlt.writer import DatasetWriter, png, to_uint8, write_dicom, write_metadata


def batch(n: int = 3) -> Batch:
    uids = pd.Index([f"u{i}" for i in range(n)], name="uid")
    rows = pd.DataFrame({"seed": range(n), "parents": ["a b"] * n}, index=uids)
    labels = pd.DataFrame({"Mass": [1.0, np.nan, 0.25][:n]}, index=uids)
    images = torch.arange(n * 16, dtype=torch.float32).reshape(n, 1, 4, 4) / (n * 16)
    return Batch(rows, images, labels)


def test_rounding_is_to_the_nearest_level() -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16) / 255
    assert (to_uint8(levels).ravel() == np.arange(256)).all()
    assert to_uint8(torch.full((1, 1, 1, 1), 2.0)).item() == 255


def test_png_gives_the_pixels_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(png(pixels)))) == pixels).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_never_written(tmp_path: Path, bad: float) -> None:
    made = batch()
    made.images[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        DatasetWriter(tmp_path).write("0", made, [], ["u0", "u1"])
    assert not DatasetWriter(tmp_path).has("0")
    DatasetWriter(tmp_path).write("0", made, [], ["u0"])
    assert [p.name for p in (tmp_path / "stages" / "shards" / "images").iterdir()] == ["u0.png"]


def test_kept_images_have_their_own_rows_and_rejects_their_reasons(tmp_path: Path) -> None:
    writer, made = DatasetWriter(tmp_path), batch()
    findings = [Finding("judge", u, 0.1 * i, 0.15, i > 1, "why") for i, u in enumerate(made.rows.index)]
    assert not writer.has("0")
    writer.write("0", made, findings, ["u2"])
    assert writer.has("0")
    kept = writer.kept()
    writer.publish(kept.index)
    assert kept.index.tolist() == ["u2"]
    assert kept.loc["u2", "Mass"] == 0.25
    assert (np.asarray(Image.open(tmp_path / kept.loc["u2", "path"])) == to_uint8(made.images)[2]).all()
    assert writer.findings().query("not passed")["uid"].tolist() == ["u0", "u1"]


def test_an_image_folder_of_hugging_face_can_be_made_of_it(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path)
    writer.write("0", batch(), [], ["u0", "u1"])
    writer.publish(["u0", "u1"])
    write_metadata(tmp_path, writer.kept(), ["Mass"])
    table = pd.read_csv(tmp_path / "images" / "metadata.csv")
    assert table["file_name"].tolist() == ["u0.png", "u1.png"]
    assert all((tmp_path / "images" / name).exists() for name in table["file_name"])
    assert np.isnan(table["Mass"][1])


def test_dicom_files_hold_the_published_pixels_and_what_made_them(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path)
    writer.write("0", batch(), [], ["u0", "u1"])
    writer.publish(["u0", "u1"])
    rows = writer.kept().assign(method="fusion", models="0123456789abcdef", parents="ward-7 ward-8", patient_id="ward")
    write_dicom(tmp_path, rows, ["Mass"])
    assert sorted(p.name for p in (tmp_path / "dicom").iterdir()) == ["u0.dcm", "u1.dcm"]
    for uid in rows.index:
        file = tmp_path / "dicom" / f"{uid}.dcm"
        assert (read_image(file) == read_image(tmp_path / rows.loc[uid, "path"])).all()
        data = pydicom.dcmread(file)
        assert uid in data.DerivationDescription
        assert "0123456789abcdef" in data.DerivationDescription
        assert ("Mass 1" in data.ImageComments) == (uid == "u0")
        assert b"ward" not in file.read_bytes()


def test_dicom_files_lost_in_a_kill_come_back_and_the_others_stay(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path)
    writer.write("0", batch(), [], ["u0", "u1"])
    writer.publish(["u0", "u1"])
    rows = writer.kept().assign(method="fusion", models="")
    write_dicom(tmp_path, rows, ["Mass"])
    lost, stays = tmp_path / "dicom" / "u0.dcm", tmp_path / "dicom" / "u1.dcm"
    whole, written = lost.read_bytes(), stays.stat().st_mtime_ns
    lost.unlink()
    write_dicom(tmp_path, rows, ["Mass"])
    assert lost.read_bytes() == whole
    assert stays.stat().st_mtime_ns == written


def test_an_image_that_cannot_be_written_surfaces_and_leaves_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medlt import writer as module

    whole = module.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == "u7.png":
            raise OSError("no space left on device")
        whole(path, data)

    monkeypatch.setattr(module, "write_bytes", full)
    uids = pd.Index([f"u{i}" for i in range(12)], name="uid")
    made = Batch(pd.DataFrame({"seed": range(12)}, uids), torch.rand(12, 1, 4, 4), pd.DataFrame({"Mass": 1.0}, uids))
    with pytest.raises(OSError, match="no space left"):
        DatasetWriter(tmp_path).write("0", made, [], list(uids))
    assert not DatasetWriter(tmp_path).has("0")
    assert not list((tmp_path / "stages").rglob("*.parquet"))
