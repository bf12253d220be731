"""The result claims what was done and no more; its own output is known by proof, not by claim."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medlt.data.deidentify import Box, Deidentified, Profile, deidentify, write_deidentified

Make = Callable[..., Dataset]
BASIC = Profile.parse("basic")
CLEAN = Profile.parse("basic,clean-pixel")
ALL = Profile.parse("basic,retain-dates-modified,retain-patient-characteristics,clean-pixel")


def burned(text: str = "QUIMBY WANDA") -> np.ndarray:
    """A smooth 12-bit image with text in it, uint16 [256,256]."""
    values = np.add.outer(np.arange(256), np.arange(256)).astype(np.uint16) * 4
    strokes = cv2.putText(np.zeros((256, 256), np.uint8), text, (20, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 1, 2)
    return np.where(strokes > 0, np.uint16(4095), values)


def same(a: Dataset, b: Dataset) -> bool:
    return bool(a == b and a.file_meta == b.file_meta)


def reread(result: Deidentified, path: Path) -> Dataset:
    write_deidentified(path, result)
    return pydicom.dcmread(path)


@pytest.mark.parametrize(
    ("profile", "codes", "dates"),
    [
        ("basic", ("113100",), "REMOVED"),
        ("basic,clean-pixel", ("113100", "113101"), "REMOVED"),
        ("basic,retain-dates-modified", ("113100", "113107"), "MODIFIED"),
        ("retain-patient-characteristics,basic", ("113100", "113108"), "REMOVED"),
    ],
)
def test_a_clean_image(make: Make, key: bytes, profile: str, codes: tuple[str, ...], dates: str) -> None:
    result = deidentify(make(), Profile.parse(profile), key)
    out = result.dataset
    assert result.quarantine is None
    assert result.risk.inspected
    assert result.codes == codes
    assert tuple(i.CodeValue for i in out.DeidentificationMethodCodeSequence) == codes
    assert {i.CodingSchemeDesignator for i in out.DeidentificationMethodCodeSequence} == {"DCM"}
    assert out.PatientIdentityRemoved == "YES"
    assert out.LongitudinalTemporalInformationModified == dates
    assert out.get("BurnedInAnnotation") == ("NO" if "clean-pixel" in profile else None)


def test_burned_in_text_is_held_back_without_cleaning(make: Make, key: bytes) -> None:
    result = deidentify(make(burned()), BASIC, key)
    assert result.quarantine is not None
    assert "clean-pixel" in result.quarantine
    assert result.codes == ("113100",)
    assert (result.dataset.PatientIdentityRemoved, result.dataset.BurnedInAnnotation) == ("NO", "YES")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless, RLELossless])
def test_burned_in_text_is_painted_over(make: Make, key: bytes, syntax: str, tmp_path: Path) -> None:
    source = make(burned())
    if syntax != ExplicitVRLittleEndian:
        source.compress(syntax, generate_instance_uid=False)
    result = deidentify(source, CLEAN, key)
    assert result.quarantine is None
    assert result.risk.detected
    assert result.risk.remaining == ()
    out = reread(result, tmp_path / "out.dcm")
    assert out.file_meta.TransferSyntaxUID == (syntax if syntax == ExplicitVRLittleEndian else JPEGLSLossless)
    assert (out.PatientIdentityRemoved, out.BurnedInAnnotation) == ("YES", "NO")
    values, plain = pixel_array(out), np.add.outer(np.arange(256), np.arange(256)).astype(np.uint16) * 4
    assert (values != 4095).all()
    untouched = np.ones((256, 256), bool)
    for top, left, height, width in result.risk.detected:
        untouched[top : top + height, left : left + width] = False
    assert np.array_equal(values[untouched], plain[untouched])
    assert untouched.mean() > 0.8


@pytest.mark.parametrize(("photometric", "dark"), [("MONOCHROME1", 4095), ("MONOCHROME2", 0)])
def test_boxes_are_painted_in_what_shows_black(make: Make, key: bytes, photometric: str, dark: int) -> None:
    source = make(np.where(np.eye(64) > 0, 4095, 0).astype(np.uint16), PhotometricInterpretation=photometric)
    boxes = [[Box(10, 20, 4, 8)], []]
    out = deidentify(source, CLEAN, key, lambda image: boxes.pop(0)).dataset
    assert (pixel_array(out)[10:14, 20:28] == dark).all()


def test_a_clean_compressed_image_keeps_its_stored_values(make: Make, key: bytes) -> None:
    source, plain = make(), make()
    source.compress(RLELossless, generate_instance_uid=False)
    out = deidentify(source, CLEAN, key).dataset
    assert out.file_meta.TransferSyntaxUID == JPEGLSLossless
    np.testing.assert_array_equal(pixel_array(out), pixel_array(plain))
    signed = make(PixelRepresentation=1)
    signed.compress(RLELossless, generate_instance_uid=False)
    out = deidentify(signed, CLEAN, key).dataset
    assert out.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    np.testing.assert_array_equal(pixel_array(out), pixel_array(make(PixelRepresentation=1)))


def test_a_colour_picture_is_rebuilt_as_rgb(make: Make, key: bytes) -> None:
    colours = np.stack(np.broadcast_arrays(*np.ogrid[0:64, 0:64], 9), -1).astype(np.uint8)
    source = make(colours[..., 0], BitsAllocated=8, BitsStored=8, HighBit=7, SamplesPerPixel=3, PlanarConfiguration=0,
                  PhotometricInterpretation="RGB")  # fmt: skip
    source.PixelData = encapsulate([imagecodecs.jpegls_encode(colours)])
    source["PixelData"].VR, source.file_meta.TransferSyntaxUID = "OB", JPEGLSLossless
    out = deidentify(source, BASIC, key, lambda image: []).dataset
    assert (out.file_meta.TransferSyntaxUID, out.PhotometricInterpretation) == (JPEGLSLossless, "RGB")
    np.testing.assert_array_equal(pixel_array(out), colours)


def test_text_that_stays_is_held_back(make: Make, key: bytes) -> None:
    result = deidentify(make(), CLEAN, key, lambda image: [Box(0, 0, 4, 4)])
    assert result.quarantine is not None
    assert "after cleaning" in result.quarantine
    assert "113101" not in result.codes
    assert result.dataset.PatientIdentityRemoved == "NO"


@pytest.mark.parametrize("profile", [BASIC, CLEAN])
def test_a_declared_text_that_no_one_saw_is_held_back(make: Make, key: bytes, profile: Profile) -> None:
    result = deidentify(make(BurnedInAnnotation="YES"), profile, key)
    assert result.risk.header == 100
    assert result.quarantine is not None
    assert "113101" not in result.codes
    assert result.dataset.BurnedInAnnotation == "YES"


def test_pixels_no_one_looked_at_are_not_claimed(make: Make, key: bytes) -> None:
    result = deidentify(make(), CLEAN, key, None)
    assert "113101" not in result.codes
    assert result.dataset.PatientIdentityRemoved == "NO"
    assert "BurnedInAnnotation" not in result.dataset


@pytest.mark.parametrize(
    "attributes",
    [
        {"NumberOfFrames": 2},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"Rows": 4096},
        {"BitsAllocated": 32},
    ],
)
def test_pixels_that_cannot_be_looked_at_are_held_back(make: Make, key: bytes, attributes: dict[str, object]) -> None:
    result = deidentify(make(**attributes), CLEAN, key)
    assert result.quarantine is not None
    assert "113101" not in result.codes


def test_text_in_the_bits_beside_the_stored_ones_is_cleared(make: Make, key: bytes) -> None:
    """Above them, with or without the group of a retired overlay, and below them."""
    above, below = make(np.full((64, 64), 0x8123, np.uint16)), make(np.full((64, 64), 0x1238, np.uint16), HighBit=15)
    named = make(np.full((64, 64), 0x8123, np.uint16))
    named.add_new(0x60000102, "US", 15)
    for source in (above, below, named):
        out = deidentify(source, BASIC, key).dataset
        assert set(np.frombuffer(out.PixelData, "<u2")) == {0x123}
        assert out.HighBit == 11


def test_bytes_behind_the_pixels_go(make: Make, key: bytes) -> None:
    source = make()
    source.PixelData += b"Quimby^Wanda"
    assert len(deidentify(source, BASIC, key).dataset.PixelData) == 64 * 64 * 2


NAME = b"WANDA QUIMBY"
STREAMS = {
    "JPEG": (JPEGBaseline8Bit, lambda values: imagecodecs.jpeg8_encode(values, level=100), b"\xff\xd8"),
    "JPEG Lossless": (JPEGLosslessSV1, lambda values: imagecodecs.jpeg8_encode(values, lossless=True), b"\xff\xd8"),
    "JPEG-LS": (JPEGLSLossless, lambda values: imagecodecs.jpegls_encode(values), b"\xff\xd8"),
    "JPEG 2000": (JPEG2000Lossless, lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=0), None),
}


def marked(stream: bytes, start: bytes | None, channel: str) -> list[bytes]:
    """The fragments of a stream that also holds a name: in a segment of its own, behind its end, or in a second one."""
    segment = (len(NAME) + 2).to_bytes(2, "big") + NAME
    if channel == "behind the end":
        return [stream + NAME]
    if channel == "second stream":
        return [stream, stream + NAME]
    if start is None:  # behind SIZ; COM of JPEG 2000 has a registration word (ISO 15444-1 A.9.2)
        at = 4 + int.from_bytes(stream[4:6], "big")
        return [stream[:at] + b"\xff\x64" + (len(NAME) + 4).to_bytes(2, "big") + b"\0\1" + NAME + stream[at:]]
    return [start + (b"\xff\xfe" if channel == "comment" else b"\xff\xe1") + segment + stream[2:]]


@pytest.mark.parametrize("channel", ["comment", "application segment", "behind the end", "second stream"])
@pytest.mark.parametrize("name", list(STREAMS))
def test_nothing_of_a_compressed_stream_but_its_pixels_is_released(
    make: Make, key: bytes, name: str, channel: str
) -> None:
    """The name is not that of the header, so no search for identifiers would find it."""
    syntax, encode, start = STREAMS[name]
    values = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    source = make(values, BitsAllocated=8, BitsStored=8, HighBit=7, PatientName="Other^Name")
    fragments = marked(encode(values), start, channel)
    source.PixelData = encapsulate(fragments)
    source["PixelData"].VR = "OB"
    source.file_meta.TransferSyntaxUID = syntax
    assert NAME in b"".join(fragments)
    if channel == "second stream":
        source.NumberOfFrames = 1
    result = deidentify(source, BASIC, key, lambda image: [])
    written = BytesIO()
    pydicom.dcmwrite(written, result.dataset, enforce_file_format=False)
    released = result.quarantine is None
    assert released or channel == "second stream" or (name, channel) == ("JPEG-LS", "behind the end")
    assert not released or NAME not in written.getvalue()
    if released:
        shown = pydicom.dcmread(BytesIO(written.getvalue()), force=True).pixel_array
        np.testing.assert_allclose(shown, values, atol=2 if name == "JPEG" else 0)


def test_the_third_value_of_the_image_type_keeps_no_name(make: Make, key: bytes) -> None:
    named = make(ImageType=["DERIVED", "PRIMARY", "QUIMBY"])
    assert list(deidentify(named, BASIC, key).dataset.ImageType) == ["DERIVED", "PRIMARY"]
    plain = make(ImageType=["DERIVED", "PRIMARY", "POST_PROCESSED"])
    assert list(deidentify(plain, BASIC, key).dataset.ImageType)[2] == "POST_PROCESSED"


def test_header_hints_add_up(make: Make, key: bytes) -> None:
    plain = deidentify(make(), BASIC, key, None).risk
    hinted = deidentify(
        make(sop_class="1.2.840.10008.5.1.4.1.1.7", ConversionType="DF", Manufacturer="Vidar"), BASIC, key, None
    ).risk
    assert (plain.header, plain.reasons) == (0, ())
    assert hinted.header == 90
    assert len(hinted.reasons) == 3


@pytest.mark.parametrize("profile", [BASIC, ALL])
@pytest.mark.parametrize("text", [False, True])
def test_a_second_run_changes_nothing(make: Make, key: bytes, tmp_path: Path, profile: Profile, text: bool) -> None:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "1", "Jané"
    source = make(burned() if text else None, SpecificCharacterSet="ISO_IR 192", AnatomicRegionSequence=[item])
    first = deidentify(source, profile, key)
    second = deidentify(reread(first, tmp_path / "1.dcm"), profile, key)
    assert same(second.dataset, reread(first, tmp_path / "1.dcm"))
    assert (second.codes, second.quarantine is None) == (first.codes, first.quarantine is None)
    write_deidentified(tmp_path / "2.dcm", second)
    assert (tmp_path / "1.dcm").read_bytes() == (tmp_path / "2.dcm").read_bytes()


def test_a_second_run_trusts_nothing_around_the_data_set(make: Make, key: bytes, tmp_path: Path) -> None:
    first = deidentify(make(), ALL, key)
    clean = reread(first, tmp_path / "1.dcm")
    clean.preamble = b"Quimby".ljust(128, b"\0")
    clean.file_meta.SourceApplicationEntityTitle = "QUIMBY"
    second = deidentify(clean, ALL, key)
    assert clean.file_meta.SourceApplicationEntityTitle == "QUIMBY"
    write_deidentified(tmp_path / "2.dcm", second)
    assert (tmp_path / "1.dcm").read_bytes() == (tmp_path / "2.dcm").read_bytes()


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: setattr(d, "PatientComments", "Quimby again"),
        lambda d: setattr(d, "PatientName", "Quimby^Wanda"),
        lambda d: setattr(d, "PixelData", d.PixelData[:-2] + b"ab"),
        lambda d: d.__delitem__("KVP"),
    ],
)
def test_an_edited_output_is_done_anew(make: Make, key: bytes, edit: Callable[[Dataset], None]) -> None:
    out = deidentify(make(KVP="90"), BASIC, key).dataset
    before = out.SOPInstanceUID
    edit(out)
    again = deidentify(out, BASIC, key).dataset
    assert again.SOPInstanceUID != before
    assert "PatientComments" not in again
    assert again.PatientName != "Quimby^Wanda"


def test_a_foreign_claim_is_not_believed(make: Make, key: bytes) -> None:
    mine = deidentify(make(), BASIC, key[::-1]).dataset
    boasting = make(PatientIdentityRemoved="YES", DeidentificationMethod=["medlt", mine.DeidentificationMethod[1]])
    for source in (mine, boasting):
        out = deidentify(source, BASIC, key).dataset
        assert out.SOPInstanceUID != source.SOPInstanceUID
        assert out.PatientName != source.PatientName
    claimed = make()
    claimed.DeidentificationMethodCodeSequence = mine.DeidentificationMethodCodeSequence
    claimed.DeidentificationMethodCodeSequence[0].CodeValue = "113102"
    codes = deidentify(claimed, BASIC, key).dataset.DeidentificationMethodCodeSequence
    assert [i.CodeValue for i in codes] == ["113100"]


def test_another_profile_is_applied_to_an_output(make: Make, key: bytes) -> None:
    dated = deidentify(make(), Profile.parse("basic,retain-dates-modified"), key).dataset
    assert dated.StudyDate != ""
    assert deidentify(dated, BASIC, key).dataset.StudyDate == ""


def test_no_image_no_pixel_claim(make: Make, key: bytes) -> None:
    source = make(BurnedInAnnotation="NO")
    del source.PixelData
    result = deidentify(source, CLEAN, key)
    assert result.quarantine is None
    assert result.codes == ("113100",)
    assert result.dataset.PatientIdentityRemoved == "YES"
