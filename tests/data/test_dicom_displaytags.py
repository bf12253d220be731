"""Display tags that are no numbers, no tables or no known words: a picture by the usable rest, and a note."""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from medlt.data.dicom import displaytags as tags
from medlt.data.dicom import read_dicom
from medlt.data.dicom.display import NARROW_LUT, NO_WINDOW
from medlt.data.dicom.guard import open_bytes

Write = Callable[..., Path]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TEXT = {
    "WindowCenter": 0x00281050,
    "WindowWidth": 0x00281051,
    "RescaleSlope": 0x00281053,
    "RescaleIntercept": 0x00281052,
}
TEXT |= {"PixelSpacing": 0x00280030, "ImagerPixelSpacing": 0x00181164}


def lut(first: int, bits: int, entries: list[int] | None) -> Dataset:
    """A LUT item; without entries, only its descriptor."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries or [0]), first, bits])
    if entries is not None:
        item.add_new("LUTData", "US", entries)
    return item


def with_text(path: Path, **values: str) -> Path:
    """The file with these decimal attributes as they are, valid or not."""
    raw = path.read_bytes()
    for keyword, value in values.items():
        tag = TEXT[keyword]
        body = value.encode() + b" " * (len(value) % 2)
        element = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"DS", len(body)) + body
        data = pydicom.dcmread(BytesIO(raw))
        at = next(data.get_item(t).value_tell - (12 if t == 0x7FE00010 else 8) for t in sorted(data.keys()) if t >= tag)
        raw = raw[:at] + element + raw[at:]
    path.write_bytes(raw)
    return path


def linear(centre: float, width: float) -> np.ndarray:
    """C.11.2.1.2.1 on RAMP."""
    return np.clip((RAMP - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


@pytest.mark.parametrize("value", ["NaN", "nan", "inf", "-1e999", "1e", "about 7", "?", "1,2,3"])
@pytest.mark.parametrize("keyword", ["WindowCenter", "WindowWidth"])
def test_a_window_that_is_no_number_is_ignored_with_a_note(write_dicom: Write, keyword: str, value: str) -> None:
    window = {"WindowCenter": "2048", "WindowWidth": "4096", keyword: value}
    shown = read_dicom(with_text(write_dicom(RAMP), **window))
    np.testing.assert_allclose(shown.pixels, RAMP / 4095, atol=1e-6)
    assert shown.notes == (tags.WINDOW, NO_WINDOW)


def test_of_several_windows_the_first_of_numbers_counts(write_dicom: Write) -> None:
    path = with_text(write_dicom(RAMP), WindowCenter="nan\\1000\\2000", WindowWidth="7\\500\\600")
    shown = read_dicom(path)
    np.testing.assert_allclose(shown.pixels, linear(1000, 500), atol=1e-6)
    assert shown.notes == (tags.WINDOW,)


@pytest.mark.parametrize(("centre", "width"), [("2048,5", "1000"), ("2048.5", "1000,0"), ("+2048,5", "1,0e3")])
def test_a_decimal_comma_is_read_with_a_note(write_dicom: Write, centre: str, width: str) -> None:
    shown = read_dicom(with_text(write_dicom(RAMP), WindowCenter=centre, WindowWidth=width))
    np.testing.assert_allclose(shown.pixels, linear(2048.5, 1000), atol=1e-6)
    assert shown.notes == (tags.COMMA,)


@pytest.mark.parametrize(
    ("slope", "intercept", "read", "note"),
    [
        ("2,5", "-10", (2.5, -10), tags.COMMA),
        ("2", "-10,5", (2, -10.5), tags.COMMA),
        ("nan", "-10", (1, -10), tags.RESCALE),
        ("2", "none", (2, 0), tags.RESCALE),
    ],
)
def test_slope_and_intercept(
    write_dicom: Write, slope: str, intercept: str, read: tuple[float, float], note: str
) -> None:
    path = write_dicom(RAMP, WindowCenter=3000, WindowWidth=2001)
    shown = read_dicom(with_text(path, RescaleIntercept=intercept, RescaleSlope=slope))
    np.testing.assert_allclose(
        shown.pixels, np.clip((RAMP * float(read[0]) + read[1] - 2999.5) / 2000 + 0.5, 0, 1), atol=1e-6
    )
    assert shown.notes == (note,)


def test_spacing_with_commas_and_without_numbers(write_dicom: Write) -> None:
    full = {"WindowCenter": 2048, "WindowWidth": 4096}
    comma = read_dicom(with_text(write_dicom(RAMP, **full), PixelSpacing="0,2\\0,1"))
    assert (comma.spacing, comma.notes) == ((0.2, 0.1), (tags.COMMA,))
    other = read_dicom(with_text(write_dicom(RAMP, ImagerPixelSpacing=[0.3, 0.4], **full), PixelSpacing="a\\b"))
    assert (other.spacing, other.notes) == ((0.3, 0.4), (tags.SPACING,))


def test_clean_tags_are_left_as_they_are(write_dicom: Write) -> None:
    path = write_dicom(RAMP, WindowCenter=["2048.00", "7"], WindowWidth=["4096", "8"], VOILUTFunction="LINEAR")
    data, notes = open_bytes(path.read_bytes(), path)
    assert (list(map(str, data.WindowCenter)), notes) == (["2048.00", "7"], ())


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns as it writes such a file
@pytest.mark.parametrize("function", ["Sigmoid ", "sigmoid", " SIGMOID"])
def test_the_function_is_compared_in_capitals(write_dicom: Write, function: str) -> None:
    shown = read_dicom(write_dicom(RAMP, WindowCenter=2048, WindowWidth=1000, VOILUTFunction=function))
    np.testing.assert_allclose(shown.pixels, 0.5 + 0.5 * np.tanh(2 * (RAMP - 2048.0) / 1000), atol=1e-6)
    assert shown.notes == ()


def test_an_unknown_function_is_linear_with_a_note(write_dicom: Write) -> None:
    shown = read_dicom(write_dicom(RAMP, WindowCenter=2048, WindowWidth=1000, VOILUTFunction="CUBIC"))
    np.testing.assert_allclose(shown.pixels, linear(2048, 1000), atol=1e-6)
    assert shown.notes == (tags.FUNCTION,)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns as it writes such a file
def test_a_shape_in_small_letters_inverts(write_dicom: Write) -> None:
    shown = read_dicom(write_dicom(RAMP, WindowCenter=2048, WindowWidth=4096, PresentationLUTShape="inverse"))
    np.testing.assert_allclose(shown.pixels, 1 - RAMP / 4095, atol=1e-6)


SQUARE = [int(4095 * (i / 99) ** 2) for i in range(100)]


@pytest.mark.parametrize("broken", [lut(0, 12, None), Dataset()], ids=["no data", "nothing"])
def test_a_voi_lut_without_data_is_left_out(write_dicom: Write, broken: Dataset) -> None:
    """The next table, else the window, else the range of the data."""
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    by_table = np.array(SQUARE)[np.clip(RAMP.astype(int) - 1000, 0, 99)] / 4095
    for items, more, expected, notes in (
        ([broken, lut(1000, 12, SQUARE)], window, by_table, (tags.VOI_LUT,)),
        ([broken], window, linear(1000, 500), (tags.VOI_LUT,)),
        ([broken], {}, RAMP / 4095, (tags.VOI_LUT, NO_WINDOW)),
    ):
        shown = read_dicom(write_dicom(RAMP, VOILUTSequence=items, **more))
        np.testing.assert_allclose(shown.pixels, expected, atol=1e-6)
        assert shown.notes == notes


def test_a_modality_lut_without_data_is_left_out(write_dicom: Write) -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    shown = read_dicom(write_dicom(RAMP, ModalityLUTSequence=[lut(0, 12, None)], **window))
    np.testing.assert_allclose(shown.pixels, linear(1000, 500), atol=1e-6)
    assert shown.notes == (tags.MODALITY_LUT,)


@pytest.mark.parametrize(
    ("bits", "top", "white", "note"),
    [
        (16, 4095, 4095, True),
        (16, 3000, 3000, True),
        (12, 4095, 4095, False),
        (14, 8000, 16383, False),
        (8, 4095, 4095, False),
    ],
)
def test_a_voi_lut_far_below_its_bits_is_scaled_to_its_top(
    write_dicom: Write, bits: int, top: int, white: int, note: bool
) -> None:
    table = [round(top * i / 4095) for i in range(4096)]
    shown = read_dicom(write_dicom(RAMP, VOILUTSequence=[lut(0, bits, table)]))
    np.testing.assert_allclose(shown.pixels, np.array(table).reshape(64, 64) / white, atol=1e-6)
    assert shown.notes == ((NARROW_LUT,) if note else ())


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns as it writes such a file
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("count", [100, 40_000])
def test_lut_words_follow_the_byte_order_of_the_file(
    header: Callable[..., Dataset], tmp_path: Path, syntax: uid.UID, kind: str, count: int
) -> None:
    """PS3.5 7.3: OW is swapped as the pixels are."""
    big = syntax == uid.ExplicitVRBigEndian
    table = (np.arange(count) * 65535.0 / (count - 1)).astype(">u2" if big else "<u2")
    item = lut(0, 16, None)
    item.LUTDescriptor = [count, 0, 16]
    item.add_new("LUTData", "OW", table.tobytes())
    window = {"WindowCenter": 32768, "WindowWidth": 65536} if kind == "ModalityLUTSequence" else {}
    data = header(RAMP.astype(">u2" if big else "<u2"), **{kind: [item]}, **window)
    data.file_meta.TransferSyntaxUID = syntax
    data["PixelData"].VR = "OW"
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = table.astype(float)[np.minimum(RAMP, count - 1)] / 65535
    shown = read_dicom(tmp_path / "a.dcm")
    np.testing.assert_allclose(shown.pixels, expected, atol=1e-6)
    again, _ = open_bytes((tmp_path / "a.dcm").read_bytes(), tmp_path)
    again.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_dicom(tmp_path / "b.dcm").pixels, shown.pixels)


def group(**macros: dict[str, Any]) -> Dataset:
    """A functional group of macros, each with its attributes."""
    out = Dataset()
    for macro, attributes in macros.items():
        item = Dataset()
        for name, value in attributes.items():
            setattr(item, name, value)
        setattr(out, macro, [item])
    return out


SHARED = {
    "FrameVOILUTSequence": {"WindowCenter": 3000, "WindowWidth": 2001},
    "PixelValueTransformationSequence": {"RescaleSlope": 2, "RescaleIntercept": -500},
    "PixelMeasuresSequence": {"PixelSpacing": [0.2, 0.1]},
}
BY_SHARED = np.clip((2.0 * RAMP - 500 - 2999.5) / 2000 + 0.5, 0, 1)


def test_functional_groups_count_where_the_top_level_has_nothing(write_dicom: Write) -> None:
    shown = read_dicom(write_dicom(RAMP, SharedFunctionalGroupsSequence=[group(**SHARED)]))
    np.testing.assert_allclose(shown.pixels, BY_SHARED, atol=1e-6)
    assert (shown.spacing, shown.notes) == ((0.2, 0.1), ())


def test_the_first_frames_group_comes_before_the_shared_and_behind_the_top_level(write_dicom: Write) -> None:
    frames = [group(FrameVOILUTSequence={"WindowCenter": c, "WindowWidth": 500}) for c in (1000, 2000)]
    groups = {"SharedFunctionalGroupsSequence": [group(**SHARED)], "PerFrameFunctionalGroupsSequence": frames}
    rescaled = np.clip((2.0 * RAMP - 500 - 999.5) / 499 + 0.5, 0, 1)
    np.testing.assert_allclose(read_dicom(write_dicom(RAMP, **groups)).pixels, rescaled, atol=1e-6)
    top = {"WindowCenter": 2048, "WindowWidth": 4096, "RescaleSlope": 1, "RescaleIntercept": 0}
    np.testing.assert_allclose(read_dicom(write_dicom(RAMP, **groups, **top)).pixels, RAMP / 4095, atol=1e-6)


def test_a_shutter_is_noted(write_dicom: Write) -> None:
    shown = read_dicom(write_dicom(RAMP, WindowCenter=2048, WindowWidth=4096, ShutterShape="RECTANGULAR"))
    assert shown.notes == (tags.SHUTTER,)
