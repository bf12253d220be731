"""The reading order against PS3.3's own formulas, pydicom's bundled files, and files broken on purpose."""

import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, DeflatedExplicitVRLittleEndian, JPEGLosslessSV1

from medlt.data.dicom import Unreadable, bombs, guard, modality_lut, presentation, read_dicom, voi_lut
from medlt.data.dicom.guard import open_dicom, stored_values
from medlt.data.images import read_image
from medlt.types import InputError

Write = Callable[..., Path]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def lut(first: int, bits: int, entries: object, count: int | None = None) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) if count is None else count, first, bits])  # type: ignore[arg-type]
    item.add_new("LUTData", "OW" if isinstance(entries, bytes) else "US", entries)
    return item


def by_the_standard(x: float, centre: float, width: float, function: str) -> float:
    """C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 for one value, output range 0 to 1."""
    if function == "SIGMOID":
        return float(0.5 + 0.5 * np.tanh(2 * (x - centre) / width))  # the same curve, without overflow
    if function == "LINEAR_EXACT":
        if x <= centre - width / 2:
            return 0.0
        return 1.0 if x > centre + width / 2 else (x - centre) / width + 0.5
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (centre - 0.5)) / (width - 1) + 0.5


@given(
    centre=st.floats(-500, 4500),
    width=st.floats(1, 5000),
    function=st.sampled_from(("LINEAR", "LINEAR_EXACT", "SIGMOID")),
    values=st.lists(st.integers(-2048, 4095), min_size=1, max_size=20),
)
def test_windows_follow_the_standard(centre: float, width: float, function: str, values: list[int]) -> None:
    tags = Dataset()
    tags.WindowCenter, tags.WindowWidth, tags.VOILUTFunction = f"{centre:.6g}", f"{width:.6g}", function
    c, w = float(tags.WindowCenter), float(tags.WindowWidth)
    expected = [by_the_standard(x, c, w, function) for x in values]
    np.testing.assert_allclose(voi_lut(np.array(values), tags, (0, 1)), expected, atol=1e-9)


def test_the_window_of_width_one_is_a_step() -> None:
    tags = Dataset()
    tags.WindowCenter, tags.WindowWidth = 10, 1
    np.testing.assert_array_equal(voi_lut(np.array([8, 9, 10, 11]), tags, (0, 1)), [0, 0, 1, 1])


def test_stored_to_displayed_in_closed_form(write_dicom: Write) -> None:
    """slope 2, intercept -500, window 3000/2001: x -> (2x - 500 - 2999.5) / 2000 + 0.5, clipped."""
    path = write_dicom(RAMP, RescaleSlope=2, RescaleIntercept=-500, WindowCenter=3000, WindowWidth=2001)
    expected = np.clip((2.0 * RAMP - 500 - 2999.5) / 2000 + 0.5, 0, 1)
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1e-6)


def test_windowing_before_rescaling_would_differ(write_dicom: Write) -> None:
    path = write_dicom(RAMP, RescaleSlope=2, RescaleIntercept=-500, WindowCenter=3000, WindowWidth=2001)
    wrong = np.clip((RAMP - 2999.5) / 2000 + 0.5, 0, 1)
    assert np.abs(read_dicom(path).pixels - wrong).max() > 0.5


@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
def test_monochrome1_is_inverted_exactly_once(write_dicom: Write, shape: str | None) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PresentationLUTShape": shape}
    plain = read_dicom(write_dicom(RAMP, WindowCenter=2048, WindowWidth=4096)).pixels
    inverted = read_dicom(write_dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **window)).pixels
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


def test_inverse_shape_inverts_monochrome2() -> None:
    tags = Dataset()
    tags.PhotometricInterpretation, tags.PresentationLUTShape = "MONOCHROME2", "INVERSE"
    np.testing.assert_allclose(presentation(np.array([0.0, 0.25]), tags), [1, 0.75])


def test_monochrome1_is_inverted_after_the_window(write_dicom: Write) -> None:
    """Inverting stored values first would window the other end of the range."""
    tags = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 500, "WindowWidth": 1000}
    shown = read_dicom(write_dicom(RAMP, **tags)).pixels.ravel()
    assert shown[0] == 1
    assert (shown[1000:] == 0).all()


def test_rows_stay_rows_and_nothing_is_mirrored(write_dicom: Write) -> None:
    pixels = np.zeros((30, 50), np.uint16)
    pixels[2, 40] = 4095
    shown = read_dicom(write_dicom(pixels)).pixels
    assert shown.shape == (30, 50)
    assert shown.dtype == np.float32
    assert np.argwhere(shown == 1).tolist() == [[2, 40]]


def test_voi_lut_sequence_wins_over_the_window(write_dicom: Write) -> None:
    table = [int(4095 * (i / 99) ** 2) for i in range(100)]
    tags = {"VOILUTSequence": [lut(1000, 12, table)], "WindowCenter": 10, "WindowWidth": 10}
    shown = read_dicom(write_dicom(RAMP, **tags)).pixels.ravel()
    expected = np.array(table)[np.clip(np.arange(4096) - 1000, 0, 99)] / 4095
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_modality_lut_sequence_wins_over_rescale() -> None:
    tags = Dataset()
    tags.ModalityLUTSequence, tags.RescaleSlope = [lut(2, 8, [5, 6, 9])], 100
    np.testing.assert_array_equal(modality_lut(np.array([0, 2, 3, 4, 9]), tags), [5, 5, 6, 9, 9])


def test_lut_entries_as_words_bytes_and_packed_bytes() -> None:
    tags = Dataset()
    for item in (lut(0, 8, [1, 2, 3, 4]), lut(0, 8, b"\1\0\2\0\3\0\4\0", 4), lut(0, 8, b"\1\2\3\4", 4)):
        tags.ModalityLUTSequence = [item]
        np.testing.assert_array_equal(modality_lut(np.arange(6), tags), [1, 2, 3, 4, 4, 4])


def test_lut_of_65536_entries_is_written_as_zero() -> None:
    tags = Dataset()
    tags.ModalityLUTSequence = [lut(0, 16, np.arange(65536)[::-1].astype("<u2").tobytes(), 0)]
    np.testing.assert_array_equal(modality_lut(np.array([0, 1, 65535]), tags), [65535, 65534, 0])


@pytest.mark.parametrize(("centre", "width"), [([100, 900], [200, 50]), ([100, 900], 200), (100, [200, 50])])
def test_of_many_windows_the_first_pair_counts(centre: object, width: object) -> None:
    tags, one = Dataset(), Dataset()
    tags.WindowCenter, tags.WindowWidth = centre, width
    one.WindowCenter, one.WindowWidth = 100, 200
    values = np.arange(0, 1000, 7)
    np.testing.assert_array_equal(voi_lut(values, tags, (0, 1)), voi_lut(values, one, (0, 1)))


@pytest.mark.parametrize("width", [0, -5, None])
def test_a_window_without_width_is_none(write_dicom: Write, width: int | None) -> None:
    shown = read_dicom(write_dicom(RAMP, WindowCenter=100, WindowWidth=width))
    np.testing.assert_allclose(shown.pixels, RAMP / 4095, atol=1e-6)
    assert shown.notes == ("no window",)


@pytest.mark.parametrize(
    ("share", "weight"),
    [(1 / 16, 0), (0.24, 0), (0.26, 0), (0.3, 0), (0.5, 0), (0.65, 0.5), (0.74, 0.8), (0.8, 1), (0.95, 1)],
)
def test_without_window_the_range_goes_from_that_of_the_data_to_the_declared_one(
    write_dicom: Write, share: float, weight: float
) -> None:
    """Of 16 declared bits; data that fill half of them or less go from black to white."""
    values = (100 + np.round(RAMP / 4095 * share * 65535)).astype(np.uint16)
    shown = read_dicom(write_dicom(values, BitsStored=16, RescaleSlope=3, RescaleIntercept=-7))
    black, white = 100 * (1 - weight), values.max() * (1 - weight) + 65535 * weight
    np.testing.assert_allclose(shown.pixels, np.clip((values - black) / (white - black), 0, 1), atol=1e-4)
    assert shown.notes == ("no window" if weight == 1 else "no window, scaled to the data",)


@pytest.mark.parametrize(("top", "white"), [(4000, 4000.0), (1900, 1900.0)])
def test_without_window_the_range_is_that_behind_the_modality_lut(write_dicom: Write, top: int, white: float) -> None:
    """A table that rises and falls: its highest value is white, wherever it lies; it fills 0.875 of its output."""
    table = np.array([0, top // 4, top, top // 2, top // 8])
    pixels = np.array([[1, 2], [3, 4]], np.uint16)
    shown = read_dicom(write_dicom(pixels, ModalityLUTSequence=[lut(0, 16, table.tolist())]))
    np.testing.assert_allclose(shown.pixels, table[pixels] / white, atol=1e-6)


def test_signed_values(write_dicom: Write) -> None:
    signed = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    np.testing.assert_allclose(read_dicom(write_dicom(signed)).pixels, RAMP / 4095, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shift", [0, 3])
def test_bits_outside_the_stored_ones_are_cleared(write_dicom: Write, signed: bool, shift: int) -> None:
    values = RAMP.astype(np.int32) - (2048 if signed else 0)
    dirt = np.random.default_rng(0).integers(0, 16, RAMP.shape)
    raw = (
        ((values & 0xFFF) << shift) | ((dirt & ((1 << (4 - shift)) - 1)) << (12 + shift)) | (dirt & ((1 << shift) - 1))
    )
    pixels = raw.astype(np.uint16).view(np.int16 if signed else np.uint16)
    path = write_dicom(pixels, BitsStored=12, HighBit=11 + shift)
    data, _ = open_dicom(path)
    np.testing.assert_array_equal(stored_values(data, path), values)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_out_of_the_statistics(write_dicom: Write, photometric: str) -> None:
    pixels = RAMP // 8 + 100
    pixels[:, :10] = 4095
    tags = {"PixelPaddingValue": 4095, "PhotometricInterpretation": photometric, "BitsStored": 16}
    shown = read_dicom(write_dicom(pixels, **tags)).pixels
    assert (shown[:, :10] == 0).all()
    assert shown[:, 10:].max() == 1
    assert shown[:, 10:].min() == 0


def test_padding_range_and_a_padding_value_written_unsigned(write_dicom: Write) -> None:
    signed = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    signed[0], signed[1] = -2000, -1990
    tags = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990, "PhotometricInterpretation": "MONOCHROME1"}
    shown = read_dicom(write_dicom(signed, **tags)).pixels
    assert (shown[:2] == 0).all()
    assert (shown[2:] > 0).mean() > 0.99
    data, _ = open_dicom(write_dicom(signed, **tags))
    data["PixelPaddingValue"].VR = "US"
    data["PixelPaddingValue"]._value = 65536 - 2000
    data.save_as(write_dicom(signed).with_name("unsigned.dcm"))
    assert (read_dicom(write_dicom(signed).with_name("unsigned.dcm")).pixels[:2] == 0).all()


def test_only_padding_and_flat_images_are_black_not_a_division_by_zero(write_dicom: Write) -> None:
    flat = np.full((8, 8), 7, np.uint16)
    assert (read_dicom(write_dicom(flat, PixelPaddingValue=7)).pixels == 0).all()
    assert (read_dicom(write_dicom(flat)).pixels == 0).all()


def test_colour_becomes_luminance(write_dicom: Write) -> None:
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[0, 0], colour[0, 1], colour[0, 2], colour[1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", "BitsStored": 8}
    shown = read_dicom(write_dicom(colour, HighBit=7, **tags))
    np.testing.assert_allclose(shown.pixels, [[0.299, 0.587, 0.114], [1, 0, 0]], atol=1e-6)
    assert shown.notes == ("colour",)


def test_only_the_first_frame_is_read_and_said(write_dicom: Write) -> None:
    frames = np.stack([RAMP, RAMP[::-1]])
    path = write_dicom(frames, NumberOfFrames=2, Rows=64, Columns=64)
    shown = read_dicom(path)
    np.testing.assert_allclose(shown.pixels, RAMP / 4095, atol=1e-6)
    assert (shown.frames, "first of 2 frames" in shown.notes) == (2, True)


def test_a_frame_count_of_zero_is_mended(write_dicom: Write) -> None:
    assert "no frame count" in read_dicom(write_dicom(RAMP, NumberOfFrames=0)).notes


def test_what_the_header_tells(write_dicom: Write) -> None:
    shown = read_dicom(write_dicom(RAMP, ImagerPixelSpacing=[0.2, 0.1], BodyPartExamined="CHEST"))
    assert (shown.view, shown.modality, shown.body_part, shown.patient_id) == ("PA", "DX", "CHEST", "p1")
    assert (shown.spacing, shown.bits_stored, shown.photometric) == ((0.2, 0.1), 12, "MONOCHROME2")
    bare = read_dicom(write_dicom(RAMP, ViewPosition=None, PatientID=None, Modality=None))
    assert (bare.view, bare.patient_id, bare.modality, bare.spacing) == ("", "", "", None)


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom does not bundle {name}")
    return Path(str(path))


READABLE = {
    "CT_small.dcm": (128, 128),
    "MR_small.dcm": (64, 64),
    "MR_small_bigendian.dcm": (64, 64),
    "MR_small_RLE.dcm": (64, 64),
    "MR_small_jp2klossless.dcm": (64, 64),
    "MR_small_jpeg_ls_lossless.dcm": (64, 64),
    "JPEG2000.dcm": (1024, 256),
    "JPGExtended.dcm": (1024, 256),
    "SC_rgb_jpeg_gdcm.dcm": (100, 100),
    "SC_rgb_rle_16bit.dcm": (100, 100),
    "ExplVR_BigEnd.dcm": (60, 80),
    "image_dfl.dcm": (512, 512),
    "examples_palette.dcm": (350, 800),
    "examples_ybr_color.dcm": (240, 320),
    "rtdose_expb_1frame.dcm": None,
}


@pytest.mark.parametrize("name", READABLE)
def test_pydicoms_bundled_files(name: str) -> None:
    path = bundled(name)
    if READABLE[name] is None:
        with pytest.raises(Unreadable):
            read_dicom(path)
        return
    shown = read_dicom(path).pixels
    assert shown.shape == READABLE[name]
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert shown.std() > 0.01


@pytest.mark.parametrize("name", ["MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"])
def test_one_image_in_many_transfer_syntaxes_is_one_image(name: str) -> None:
    np.testing.assert_array_equal(read_dicom(bundled(name)).pixels, read_dicom(bundled("MR_small.dcm")).pixels)


def test_the_whole_order_agrees_with_pydicoms_slow_path() -> None:
    """apply_rescale and apply_windowing in float64, pixel by pixel, on a real signed CT slice with a lung window."""
    data = pydicom.dcmread(bundled("CT_small.dcm"))
    data.WindowCenter, data.WindowWidth = -200, 1500
    from pydicom.pixels import apply_rescale, apply_windowing

    slow = apply_windowing(apply_rescale(data.pixel_array, data), data).astype(np.float64)
    ends = apply_windowing(np.array([-1e6, 1e6]), data)
    expected = (slow - ends[0]) / (ends[1] - ends[0])
    values = modality_lut(data.pixel_array, data)
    np.testing.assert_allclose(voi_lut(values, data, (0, 1)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MR_truncated.dcm", "truncated"),
        ("badVR.dcm", "not_an_image"),
        ("rtplan.dcm", "not_an_image"),
        ("reportsi.dcm", "not_an_image"),
        ("test-SR.dcm", "not_an_image"),
        ("DICOMDIR", "not_an_image"),
        ("no_meta.dcm", "not_dicom"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(name: str, code: str) -> None:
    with pytest.raises(Unreadable) as error:
        read_dicom(bundled(name))
    assert error.value.code == code
    assert isinstance(error.value, InputError)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def code_of(path: Path) -> str:
    with pytest.raises(Unreadable) as error:
        read_dicom(path)
    assert "\n" not in str(error.value)
    return error.value.code


def test_text_empty_and_missing_files_are_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("not a radiograph, but long enough to be taken for one\n" * 20)
    (tmp_path / "empty.dcm").touch()
    assert code_of(tmp_path / "text.dcm") == "not_dicom"
    assert code_of(tmp_path / "empty.dcm") in ("not_dicom", "corrupt", "truncated")
    assert code_of(tmp_path / "none.dcm") == "missing"
    assert code_of(tmp_path) == "missing"


@settings(max_examples=60)
@given(cut=st.floats(0, 1), byte=st.integers(0, 255), spot=st.floats(0, 1))
@example(cut=1.0, byte=0, spot=0.08457585402110325)  # the value representation of Bits Allocated
def test_no_damage_raises_anything_but_a_reason(
    tmp_path_factory: pytest.TempPathFactory, cut: float, byte: int, spot: float
) -> None:
    whole = bytearray(bundled("CT_small.dcm").read_bytes())
    whole[int(spot * (len(whole) - 1))] = byte
    path = tmp_path_factory.mktemp("damaged") / "image"
    path.write_bytes(whole[: int(cut * len(whole))])
    with suppress(Unreadable):
        assert np.isfinite(read_dicom(path).pixels).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_gives_back_every_stored_value(header: Callable[..., Dataset], tmp_path: Path, bits: int) -> None:
    """The commonest compression of radiography archives, which pydicom alone cannot decode here."""
    values = (np.arange(4096).reshape(64, 64) * 2**bits // 4096).astype(np.uint8 if bits == 8 else np.uint16)
    data = header(values, BitsStored=bits, PixelData=b"")
    stream = imagecodecs.jpeg8_encode(values, lossless=True, predictor=1, bitspersample=bits)
    data.PixelData = encapsulate([stream])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    again, _ = open_dicom(tmp_path / "a.dcm")
    np.testing.assert_array_equal(stored_values(again, tmp_path / "a.dcm"), values)


def test_no_preamble_and_no_extension_are_read_and_said(write_dicom: Write, tmp_path: Path) -> None:
    data, _ = open_dicom(write_dicom(RAMP))
    bare = tmp_path / "I000001"
    plain = Dataset({k: v for k, v in data.items()})
    plain.save_as(bare, implicit_vr=True, little_endian=True)
    shown = read_dicom(bare)
    np.testing.assert_allclose(shown.pixels, RAMP / 4095, atol=1e-6)
    assert shown.notes[:2] == ("no preamble", "no transfer syntax")


def test_a_giant_is_refused_from_its_header(write_dicom: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(guard, "pixel_array", lambda *a, **k: opened.append(a))
    assert code_of(write_dicom(RAMP, Rows=60000, Columns=60000)) == "too_large"
    assert code_of(write_dicom(RAMP, NumberOfFrames=100000)) == "too_large"
    assert opened == []


def test_a_deflate_bomb_is_refused_before_it_is_inflated(
    write_dicom: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = open_dicom(write_dicom(RAMP))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_dicom(tmp_path / "deflated.dcm").pixels, RAMP / 4095, atol=1e-6)
    size = bombs.inflated_size(zlib.compress(bytes(10**6), wbits=-15))
    assert size == 10**6
    monkeypatch.setattr(bombs, "LIMIT_INFLATED_BYTES", 5000)
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: pytest.fail("inflated"))
    assert code_of(tmp_path / "deflated.dcm") == "too_large"


def test_a_missing_codec_is_named(write_dicom: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = open_dicom(write_dicom(RAMP))
    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")
    with pytest.raises(Unreadable, match="not supported") as error:
        stored_values(data, Path("video.dcm"))
    assert error.value.code == "codec_missing"

    from pydicom.pixels.decoders import JPEG2000Decoder

    monkeypatch.setattr(JPEG2000Decoder, "_available", {})
    monkeypatch.setattr(JPEG2000Decoder, "_unavailable", {"pylibjpeg": ("numpy", "pylibjpeg-openjpeg>=2.0")})
    data.file_meta.TransferSyntaxUID = JPEG2000
    with pytest.raises(Unreadable, match=r"no decoder for .*pip install pylibjpeg pylibjpeg-openjpeg"):
        stored_values(data, Path("image.dcm"))


def test_odd_values_give_no_warning_to_the_caller(write_dicom: Write) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_dicom(RAMP, PatientID="x" * 70, StudyDate="31/12/2020", ViewPosition="pa oblique \\ left")
    assert read_image(path).shape == (64, 64)
