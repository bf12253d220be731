"""Synthetic images as Secondary Capture: read back exactly, conformant, equal bytes, and nothing of any source."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from medlt.data.dicom import read_dicom
from medlt.data.dicom.synthetic import Origin, synthetic_dataset, write_synthetic
from medlt.data.images import read_image
from medlt.types import InputError
from medlt.writer import png

ORIGIN = Origin("fusion_Hernia_00001_0_0a1b2c", "fusion", "0123456789abcdef", {"Hernia": 1.0, "Mass": float("nan")})
GRAY = np.arange(63, dtype=np.uint8).reshape(7, 9)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
INTEGERS = st.sampled_from(["u1", "<u2", ">u2"]).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
FLOATS = st.sampled_from(["f2", "f4", "f8"]).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES, elements=st.floats(0, 1, width=16))
)

# PS3.3 A.8.1: what the modules of the Secondary Capture Image IOD ask for, the mandatory ones and two optional that
# are used (General Equipment, VOI LUT). General Acquisition (C.7.10.1) and SC Image (C.8.6.2) ask for nothing. Type 1:
# there, with a value; type 2: there, may be empty. Conditional ones are listed where their condition holds here.
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "Patient, C.7.1.1, Table C.7-1": {
        "1": ("DeidentificationMethod",),  # 1C: Patient Identity Removed is YES
        "2": ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    },
    "General Study, C.7.2.1, Table C.7-3": {
        "1": ("StudyInstanceUID",),
        "2": ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    },
    "General Series, C.7.3.1, Table C.7-5a": {
        "1": ("Modality", "SeriesInstanceUID"),
        "2": ("SeriesNumber", "Laterality"),  # Laterality 2C: the body part may be a paired one
    },
    "General Equipment, C.7.5.1, Table C.7-8": {"2": ("Manufacturer",)},
    "SC Equipment, C.8.6.1, Table C.8-24": {"1": ("ConversionType",)},
    "General Image, C.7.6.1, Table C.7-9": {
        "2": ("InstanceNumber", "PatientOrientation"),  # Patient Orientation 2C: there is no Image Plane Module
    },
    "Image Pixel, C.7.6.3, Tables C.7-11a and C.7-11c": {
        "1": (
            "SamplesPerPixel",
            "PhotometricInterpretation",
            "Rows",
            "Columns",
            "BitsAllocated",
            "BitsStored",
            "HighBit",
            "PixelRepresentation",
            "PixelData",
        ),
    },
    "VOI LUT, C.11.2, Table C.11-2b": {"1": ("WindowCenter", "WindowWidth")},
    "SOP Common, C.12.1, Table C.12-1": {"1": ("SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet")},
}
TIMES = ("DA", "TM", "DT")


def file_of(place: Path, pixels: np.ndarray = GRAY, origin: Origin = ORIGIN, name: str = "image.dcm") -> Path:
    write_synthetic(place / name, pixels, origin)
    return place / name


def lacking(data: Dataset) -> list[str]:
    """What the table asks for and `data` has not."""
    entries = [(kind, name) for module in MODULES.values() for kind, names in module.items() for name in names]
    return [name for kind, name in entries if name not in data or (kind == "1" and data[name].is_empty)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_stored_level_comes_back_as_itself(tmp_path: Path, dtype: type[np.unsignedinteger]) -> None:
    top = np.iinfo(dtype).max
    side = int(np.sqrt(top + 1))
    levels = np.arange(top + 1, dtype=dtype).reshape(side, side)
    read = read_dicom(file_of(tmp_path, levels))
    np.testing.assert_array_equal(read.pixels, (levels / top).astype(np.float32))
    assert read.notes == ()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pixels=INTEGERS)
def test_any_gray_image_is_stored_and_read_as_it_is(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "any.dcm"
    path.unlink(missing_ok=True)
    write_synthetic(path, pixels, ORIGIN)
    data = pydicom.dcmread(path)
    np.testing.assert_array_equal(data.pixel_array, pixels)
    assert len(data.PixelData) % 2 == 0  # PS3.5 8.1.1
    np.testing.assert_array_equal(read_dicom(path).pixels, (pixels / np.iinfo(pixels.dtype).max).astype(np.float32))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pixels=FLOATS)
def test_floats_come_back_within_half_a_level_of_sixteen_bits(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "any.dcm"
    path.unlink(missing_ok=True)
    write_synthetic(path, pixels, ORIGIN)
    assert np.abs(read_dicom(path).pixels - pixels.astype(np.float64)).max() <= 0.5 / 65535 + 2**-24


def test_a_png_and_its_dicom_are_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(GRAY))
    np.testing.assert_array_equal(read_image(file_of(tmp_path)), read_image(tmp_path / "image.png"))


def test_equal_arguments_give_equal_bytes_and_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    assert file_of(tmp_path, name="again.dcm").read_bytes() == path.read_bytes()
    before = path.stat().st_mtime_ns
    file_of(tmp_path)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="exists with other contents"):
        file_of(tmp_path, GRAY + 1)


@pytest.mark.parametrize(
    ("pixels", "origin"),
    [
        (GRAY + 1, ORIGIN),
        (GRAY.astype(np.uint16), ORIGIN),
        (GRAY.reshape(9, 7), ORIGIN),
        (GRAY, Origin("other", "fusion", ORIGIN.models, ORIGIN.labels)),
        (GRAY, Origin(ORIGIN.uid, "diffult", ORIGIN.models, ORIGIN.labels)),
        (GRAY, Origin(ORIGIN.uid, "fusion", "fedcba9876543210", ORIGIN.labels)),
        (GRAY, Origin(ORIGIN.uid, "fusion", ORIGIN.models, {"Hernia": 0.5})),
    ],
    ids=["pixels", "depth", "shape", "uid", "method", "models", "labels"],
)
def test_another_file_has_other_uids(pixels: np.ndarray, origin: Origin) -> None:
    names = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    first, second = synthetic_dataset(GRAY, ORIGIN), synthetic_dataset(pixels, origin)
    uids = [data[name].value for data in (first, second) for name in names]
    assert len(set(uids)) == 6
    assert all(UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)


def test_the_type_of_a_label_is_no_content() -> None:
    half = [synthetic_dataset(GRAY, Origin("u", "fusion", "", {"Mass": kind(0.5)})) for kind in (float, np.float32)]
    assert half[0] == half[1]


def test_a_patient_that_does_not_exist_hangs_on_the_plan_row_alone() -> None:
    one, same = synthetic_dataset(GRAY, ORIGIN), synthetic_dataset(GRAY + 1, ORIGIN)
    other = synthetic_dataset(GRAY, Origin("other", "fusion"))
    assert one.PatientID == same.PatientID != other.PatientID
    assert one.PatientID.startswith("SYNTH-")
    assert str(one.PatientName).startswith("SYNTHETIC")


def test_the_file_says_what_it_is_and_what_made_it(tmp_path: Path) -> None:
    data = pydicom.dcmread(file_of(tmp_path))
    tags = {name: data[name].value for name in ("SyntheticData", "ConversionType", "Modality", "BurnedInAnnotation")}
    assert tags == {"SyntheticData": "YES", "ConversionType": "SYN", "Modality": "OT", "BurnedInAnnotation": "NO"}
    assert data.file_meta.MediaStorageSOPClassUID == data.SOPClassUID == SecondaryCaptureImageStorage
    assert list(data.ImageType) == ["DERIVED", "SECONDARY"]
    assert data.PatientIdentityRemoved == "YES"
    assert data.LossyImageCompression == "00"
    assert data.SeriesDescription == "SYNTHETIC fusion"
    (maker,) = data.ContributingEquipmentSequence
    purpose = maker.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert maker.Manufacturer == "medlt"
    assert all(part in data.DerivationDescription for part in (ORIGIN.uid, ORIGIN.models, maker.SoftwareVersions))
    assert "Hernia 1" in data.ImageComments
    assert "Mass" not in data.ImageComments


def test_nothing_in_the_file_points_to_a_source_or_tells_a_time(tmp_path: Path) -> None:
    data = pydicom.dcmread(file_of(tmp_path))
    elements = list(data.iterall())
    assert [e.keyword for e in elements if e.VR in TIMES and not e.is_empty] == []
    assert [e.keyword for e in elements if "Source" in e.keyword or "Referenced" in e.keyword] == []
    assert [e.keyword for e in elements if e.tag.is_private] == []
    allowed = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"}
    assert {e.keyword for e in elements if e.VR == "UI"} == allowed


def test_every_attribute_the_modules_ask_for_is_there(tmp_path: Path) -> None:
    assert lacking(pydicom.dcmread(file_of(tmp_path))) == []


def test_the_module_table_sees_what_is_missing() -> None:
    data = synthetic_dataset(GRAY, ORIGIN)
    del data.StudyDate
    data.ConversionType = ""
    assert lacking(data) == ["StudyDate", "ConversionType"]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0.5, np.nan]]), "not finite"),
        (np.array([[0.5, np.inf]]), "not finite"),
        (np.array([[0.5, 1.5]]), r"0.5 to 1.5 are not in \[0, 1\]"),
        (np.array([[-0.25, 1.0]]), r"are not in \[0, 1\]"),
        (np.zeros((1, 4, 4), np.uint8), r"shape \(1, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (np.zeros((1, 65536), np.uint8), "shape"),
        (np.zeros((4, 4), np.int16), "int16"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), np.uint32), "uint32"),
    ],
)
def test_what_is_no_gray_image_is_refused_in_one_line(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        file_of(tmp_path, pixels)
    assert "\n" not in str(raised.value)
    assert ORIGIN.uid in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        (Origin("", "fusion"), "empty"),
        (Origin("u", ""), "empty"),
        (Origin("u\\v", "fusion"), "not DICOM text"),
        (Origin("u", "fusion\nPatientName"), "not DICOM text"),
        (Origin("u", "m" * 257), "not DICOM text"),
        (Origin("u", "fusion", labels={"A\\B": 1.0}), "not DICOM text"),
        (Origin("u", "fusion", labels={"A": 1.5}), "label 'A'"),
        (Origin("u", "fusion", labels={f"{i:0>250}": 1.0 for i in range(50)}), "too many labels"),
    ],
)
def test_invalid_dicom_text_is_refused_in_one_line(tmp_path: Path, origin: Origin, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        file_of(tmp_path, origin=origin)
    assert "\n" not in str(raised.value)


def test_the_longest_names_fit_their_elements(tmp_path: Path) -> None:
    long = Origin("u" * 256, "é" * 256, "d" * 256, {"胸" * 256: 1.0})
    assert pydicom.config.settings.writing_validation_mode == pydicom.config.WARN  # and a warning fails a test
    assert pydicom.dcmread(file_of(tmp_path, origin=long)).SeriesDescription.startswith("SYNTHETIC éé")


def verdict(path: Path) -> list[str]:
    """The error lines of dciodvfy; the test is skipped where it is not installed."""
    if not (tool := shutil.which("dciodvfy")):
        pytest.skip("dciodvfy (Debian package dicom3tools) is not on the PATH")
    output = subprocess.run([tool, "-new", path], capture_output=True, text=True, check=False, timeout=60).stderr
    assert "SCImage" in output.splitlines()  # the IOD that it was checked against
    return [line for line in output.splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("pixels", [GRAY, GRAY.astype(np.uint16), GRAY / 255], ids=["8 bit", "16 bit", "floats"])
def test_dciodvfy_finds_no_error(tmp_path: Path, pixels: np.ndarray) -> None:
    """dciodvfy of January 2024 does not know Synthetic Data; without that element nothing must remain."""
    path = file_of(tmp_path, pixels)
    assert [line for line in verdict(path) if "(0008,001c)" not in line.lower()] == []
    data = pydicom.dcmread(path)
    del data.SyntheticData
    data.save_as(tmp_path / "older.dcm", enforce_file_format=True)
    assert verdict(tmp_path / "older.dcm") == []
    del data.ConversionType
    data.save_as(tmp_path / "broken.dcm", enforce_file_format=True)
    assert len(verdict(tmp_path / "broken.dcm")) == 1
