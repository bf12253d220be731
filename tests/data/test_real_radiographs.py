"""The same readers on real files and tables; skipped where MEDLT_DATA does not point at them."""

import hashlib
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.data.dicom import Unreadable, read_dicom
from medlt.data.dicom.guard import open_dicom, stored_values
from medlt.data.images import read_image
from medlt.data.layouts import NIH_FINDINGS, from_csv, from_nih
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.data.squares import square
from medlt.data.validate import scan, validate

pytestmark = pytest.mark.real_data


def stored(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data, _ = open_dicom(path)
        return stored_values(data, path)


def test_every_listed_file_decodes_to_its_hash_or_is_refused(real_data: Path) -> None:
    listed = pd.read_csv(real_data / "dicom/manifest.csv", keep_default_na=False)
    assert len(listed) == 87
    for row in listed.itertuples():
        path = real_data / "dicom" / row.file
        if row.decode != "ok":
            with pytest.raises(Unreadable):
                read_dicom(path)
            continue
        values = stored(path)
        assert f"{values.min()}..{values.max()}" == row.stored_range, row.file
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
        assert digest == (row.expected_stored_sha256_16 or row.stored_sha256_16), row.file
        shown = read_dicom(path)
        assert shown.pixels.shape == (int(row.rows), int(row.cols)), row.file
        assert (shown.view, shown.modality, shown.photometric) == (row.view, row.modality, row.photometric)


@pytest.mark.parametrize(
    "name",
    ["photo_mono2_inverted_pixels", "rescale_slope2_int-500", "no_window", "multi_window", "voi_linear_exact"],
)
def test_variants_of_one_image_display_alike(real_data: Path, name: str) -> None:
    folder = real_data / "dicom/derived"
    full = read_dicom(folder / "ts_explicit_le.dcm").pixels
    expected = full.reshape(220, 2, 220, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(read_dicom(folder / f"{name}.dcm").pixels, expected, atol=2 / 1023)


def test_ten_transfer_syntaxes_are_one_image(real_data: Path) -> None:
    files = sorted((real_data / "dicom/derived").glob("ts_*.dcm"))
    assert len(files) == 10
    first = read_dicom(files[0]).pixels
    for file in files:
        lossy = re.search("near|lossy", file.name)
        np.testing.assert_allclose(read_dicom(file).pixels, first, atol=0.04 if lossy else 0)


def test_padded_sides_are_black(real_data: Path) -> None:
    pixels = read_dicom(real_data / "dicom/derived/pixel_padding.dcm").pixels
    assert (pixels[stored(real_data / "dicom/derived/pixel_padding.dcm") == 0] == 0).all()


def test_wrapped_dicom_shows_the_png_it_was_made_from(real_data: Path) -> None:
    """Upright and not mirrored, MONOCHROME1 or not: nearest to its own PNG among all of them, and not flipped."""
    labels = pd.read_csv(real_data / "dicom/nih_dx_labels.csv")
    pictures = pd.read_csv(real_data / "nih14/labels.csv").set_index("image_id")["path"]
    shared = labels[labels["image_id"].isin(pictures.index)]
    assert len(shared) >= 10
    for row in shared.itertuples():
        shown = square(read_dicom(real_data / "dicom" / row.file).pixels, 64)
        picture = square(read_image(real_data / "nih14" / pictures[row.image_id]), 64)
        apart = [
            np.abs(shown - other).mean() for other in (picture, picture[:, ::-1], picture[::-1], picture.T, 1 - picture)
        ]
        assert np.argmin(apart) == 0, row.file
        assert apart[0] < 0.03, row.file


def nih14(real_data: Path, **how: str) -> Manifest:
    folder = real_data / "nih14"
    return from_csv(table=folder / "labels.csv", findings=NIH_FINDINGS, uid="image_id", **how)  # type: ignore[arg-type]


def test_the_long_tailed_subset(real_data: Path) -> None:
    manifest = nih14(real_data, train_flag="lt_train")
    train = manifest.split("train")
    assert len(train.rows) == 1017
    assert train.counts().at["No_Finding", "positive"] == 528
    assert train.counts().at["Hernia", "positive"] == 8
    assert train.tail(25) == ("Edema", "Hernia")
    manifest.check_files()
    manifest.require_positives()
    assert validate(train, workers=2).failures == 0


def test_all_of_nih14_loads_small(real_data: Path) -> None:
    manifest = nih14(real_data)
    assert len(manifest.rows) == 1739
    assert manifest.rows["patient_id"].nunique() == 1441
    loaded = images(manifest.split("val"), 64)
    assert loaded.shape == (len(manifest.split("val").rows), 1, 64, 64)
    assert (loaded.float().std(dim=(1, 2, 3)) > 10).all()


def test_other_collections_read_as_they_are(real_data: Path) -> None:
    pneumonia = from_csv(
        table=real_data / "pedpneu/labels.csv",
        findings=("No_Finding", "Pneumonia", "Bacterial", "Viral"),
        uid="image_id",
    )
    assert len(pneumonia.rows) == 357
    assert len(scan(pneumonia, 2)) == 0
    covid = from_csv(table=real_data / "covidmix/labels.csv", findings=("COVID-19", "No_Finding"), uid="image_id")
    assert len(covid.rows) == 275
    assert len(scan(covid, 2)) == 0


def test_the_whole_nih_table_without_images(real_data: Path, tmp_path: Path) -> None:
    """Counts of positives as published with the v2020 table (Wang et al. 2017, corrected release)."""
    manifest = from_nih(table=real_data / "labels_only/Data_Entry_2017_v2020.csv.gz", images=tmp_path)
    assert len(manifest.rows) == 112120
    assert manifest.rows["patient_id"].nunique() == 30805
    positive = manifest.counts()["positive"]
    known = {"No_Finding": 60361, "Infiltration": 19894, "Effusion": 13317, "Pneumonia": 1431, "Hernia": 227}
    assert {f: positive[f] for f in known} == known
    shares = manifest.rows["split"].value_counts(normalize=True)
    assert abs(shares["train"] - 0.7) < 0.02
    manifest.write(tmp_path / "manifest.parquet")
    again = Manifest.read(tmp_path / "manifest.parquet")
    pd.testing.assert_frame_equal(again.rows, manifest.rows)
