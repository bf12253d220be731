"""The same on files as they come: pydicom's own, and the real and derived radiographs."""

import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from medlt.data.deidentify import Profile, deidentify, write_deidentified

ALL = Profile.parse("basic,retain-dates-modified,retain-patient-characteristics,clean-pixel")
BUNDLED = [
    "CT_small.dcm",
    "MR_small_bigendian.dcm",
    "ExplVR_BigEndNoMeta.dcm",
    "badVR.dcm",
    "test-SR.dcm",
    "rtplan.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "693_J2KI.dcm",
    "image_dfl.dcm",
    "MR_truncated.dcm",
    "reportsi.dcm",
]


def read(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path, force=True)
        list(data.keys())
        return data


def names(data: Dataset) -> set[str]:
    """Parts of the names of persons, as bytes would show them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [str(data.get(k) or "") for k in ("PatientName", "ReferringPhysicianName", "OperatorsName")]
    return {p for v in values for p in v.replace("=", "^").split("^") if len(p) > 5 and p.isascii()} - {"Anonymized"}


def once_and_again(path: Path, key: bytes, out: Path) -> None:
    """De-identify, write, read, de-identify: the names are gone and the second run gives the same bytes."""
    source = read(path)
    first = deidentify(source, ALL, key)
    write_deidentified(out, first)
    raw = out.read_bytes()
    assert raw[:132] == b"\0" * 128 + b"DICM"
    assert [n for n in names(source) if n.lower().encode() in raw.lower()] == []
    write_deidentified(out.with_suffix(".2"), deidentify(read(out), ALL, key))
    assert out.with_suffix(".2").read_bytes() == raw
    assert ("113101" in first.codes) <= (first.quarantine is None and first.risk.inspected)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_files(name: str, key: bytes, tmp_path: Path) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} does not come with this pydicom")
    once_and_again(Path(str(path)), key, tmp_path / "out.dcm")


@pytest.mark.real_data
def test_real_and_derived_radiographs(real_data: Path, key: bytes, tmp_path: Path) -> None:
    paths = sorted((real_data / "dicom").glob("*/*"))
    readable = [p for p in paths if len(read(p)) > 5]
    assert len(readable) > 80
    for i, path in enumerate(readable):
        once_and_again(path, key, tmp_path / f"{i}.dcm")


@pytest.mark.real_data
def test_synthetic_identifiers_on_a_real_chest(real_data: Path, key: bytes, tmp_path: Path) -> None:
    result = deidentify(read(real_data / "dicom" / "derived" / "phi_synthetic.dcm"), ALL, key)
    write_deidentified(tmp_path / "out.dcm", result)
    raw = (tmp_path / "out.dcm").read_bytes()
    planted = (b"SYNTHETIC HOSPITAL", b"DOE", b"JANE", b"DEVCR1", b"19500101", b"1 Fake St", b"PRIVATE")
    assert [p for p in planted if p in raw] == []
    assert result.quarantine is None
    assert result.dataset.BodyPartExamined == "CHEST"
    assert result.dataset.PixelData == read(real_data / "dicom" / "derived" / "phi_synthetic.dcm").PixelData
