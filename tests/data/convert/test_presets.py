"""The four recipes against their published steps written out pixel by pixel, and area averaging against its mean."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset

from medlt.data.convert.presets import PRESETS, Rendered, chexpert, linear16, mimic_cxr_jpg, resized, to_uint8, viewer
from medlt.data.dicom import Unreadable, modality_lut, presentation, voi_lut

STORED = arrays(np.uint16, (7, 9), elements=st.integers(0, 4095))
TOP = 65535


def tags(photometric: str = "MONOCHROME2", **more: object) -> Dataset:
    data = Dataset()
    data.PhotometricInterpretation, data.PixelRepresentation = photometric, 0
    data.BitsAllocated, data.BitsStored, data.PixelData = 16, 12, b""
    for name, value in more.items():
        setattr(data, name, value)
    return data


def mimic_by_the_paper(x: np.ndarray, mono1: bool) -> np.ndarray:
    """The published steps on whole float64 images, no table."""
    x = x - x.min()
    x = x / x.max()
    x = (x * 255).astype(np.uint8)
    return cv2.equalizeHist(cv2.bitwise_not(x) if mono1 else x)


def chexpert_by_its_author(x: np.ndarray, mono1: bool) -> np.ndarray:
    x = cv2.convertScaleAbs(x, alpha=255.0 / x.max())
    return cv2.equalizeHist(cv2.bitwise_not(x) if mono1 else x)


@pytest.mark.parametrize("mono1", [False, True])
@given(stored=STORED.filter(lambda x: np.ptp(x) > 0))
@settings(max_examples=60)
def test_mimic_cxr_jpg_is_the_published_recipe_bit_for_bit(mono1: bool, stored: np.ndarray) -> None:
    data = tags("MONOCHROME1" if mono1 else "MONOCHROME2", RescaleSlope=3, WindowCenter=9, WindowWidth=5)
    np.testing.assert_array_equal(mimic_cxr_jpg(stored, data).pixels, mimic_by_the_paper(stored, mono1))


@pytest.mark.parametrize("mono1", [False, True])
@given(stored=STORED.filter(lambda x: x.max() > 0))
@settings(max_examples=60)
def test_chexpert_is_its_authors_recipe_bit_for_bit(mono1: bool, stored: np.ndarray) -> None:
    data = tags("MONOCHROME1" if mono1 else "MONOCHROME2")
    np.testing.assert_array_equal(chexpert(stored, data).pixels, chexpert_by_its_author(stored, mono1))


def test_chexpert_takes_the_absolute_of_signed_values() -> None:
    stored = np.array([[-100, 0], [50, 200]], np.int16)
    np.testing.assert_array_equal(
        chexpert(stored, tags(PixelRepresentation=1)).pixels, chexpert_by_its_author(stored, False)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_constant_image_is_converted_without_a_warning(name: str) -> None:
    made = PRESETS[name](np.full((4, 5), 7, np.uint16), tags())
    assert made.pixels.shape == (4, 5)
    assert np.ptp(made.pixels) == 0


@given(stored=STORED, mono1=st.booleans(), centre=st.integers(1, 4000), width=st.integers(2, 4000))
@settings(max_examples=60)
def test_viewer_is_the_display_pipeline_in_16_bits(stored: np.ndarray, mono1: bool, centre: int, width: int) -> None:
    data = tags("MONOCHROME1" if mono1 else "MONOCHROME2", WindowCenter=centre, WindowWidth=width, RescaleSlope=2)
    shown = presentation(voi_lut(modality_lut(stored.astype(float), data), data, (0, 1)), data)
    made = viewer(stored, data)
    np.testing.assert_array_equal(made.pixels, np.floor(shown * TOP + 0.5).astype(np.uint16))
    assert made.window == f"LINEAR centre {centre} width {width}"


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.float32])
def test_every_type_of_stored_value_takes_the_same_road(kind: type) -> None:
    values = np.array([[0, 5, 17], [99, 100, 127]])
    data = tags(WindowCenter=50.5, WindowWidth=101, PixelRepresentation=int(np.issubdtype(kind, np.signedinteger)))
    expected = np.floor(np.clip(values / 100, 0, 1) * TOP + 0.5)
    np.testing.assert_allclose(viewer(values.astype(kind), data).pixels, expected, atol=1)


def test_padding_is_black_and_plays_no_part_in_the_scale() -> None:
    stored = np.array([[-2000, -2000, 10], [20, 30, 110]], np.int16)
    made = linear16(stored, tags(PixelRepresentation=1, PixelPaddingValue=-2000))
    np.testing.assert_array_equal(made.pixels[0, :2], 0)
    assert made.pixels[0, 2] == 0
    assert made.pixels[1, 2] == TOP
    seen = viewer(stored, tags("MONOCHROME1", PixelRepresentation=1, PixelPaddingValue=-2000))
    np.testing.assert_array_equal(seen.pixels[0, :2], 0)


@given(stored=STORED, mono1=st.booleans(), slope=st.floats(0.1, 9), intercept=st.floats(-2000, 2000))
@settings(max_examples=60)
def test_linear16_gives_the_modality_values_back(
    stored: np.ndarray, mono1: bool, slope: float, intercept: float
) -> None:
    data = tags(
        "MONOCHROME1" if mono1 else "MONOCHROME2", RescaleSlope=f"{slope:.6g}", RescaleIntercept=f"{intercept:.6g}"
    )
    made = linear16(stored, data)
    values = modality_lut(stored.astype(float), data)
    assert made.scale is not None
    assert made.offset is not None
    back = made.offset + made.scale * made.pixels.astype(float)
    np.testing.assert_allclose(back, values, atol=abs(made.scale) / 2 + 1e-6)
    brightest = stored.argmin() if mono1 else stored.argmax()
    assert np.ptp(stored) == 0 or made.pixels.ravel()[brightest] == TOP


@pytest.mark.parametrize("name", ["mimic-cxr-jpg", "chexpert", "linear16"])
def test_colour_is_refused_by_recipes_for_films(name: str) -> None:
    with pytest.raises(Unreadable) as refused:
        PRESETS[name](np.zeros((4, 5, 3), np.uint8), tags())
    assert refused.value.code == "colour"


def test_every_16_bit_level_goes_to_the_nearest_of_256() -> None:
    levels = np.arange(TOP + 1, dtype=np.uint16).reshape(256, 256)
    exact = (2 * levels.astype(int) + 257) // (2 * 257)
    np.testing.assert_array_equal(to_uint8(levels), exact)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_whole_factor_averages_blocks(kind: type) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (12, 18), dtype=kind)
    blocks = pixels.reshape(4, 3, 6, 3).mean((1, 3))
    made = resized(Rendered(pixels, ""), 4).pixels
    assert made.dtype == kind
    assert np.abs(made - blocks).max() <= 0.5 + 1e-3


@given(rows=st.integers(20, 60), columns=st.integers(20, 60), size=st.integers(5, 19))
@settings(max_examples=40)
def test_any_factor_is_the_mean_over_the_covered_area(rows: int, columns: int, size: int) -> None:
    """Oracle: overlap of each output pixel with each input pixel, by rows and by columns."""
    pixels = np.random.default_rng(rows * columns).integers(0, TOP, (rows, columns), dtype=np.uint16)
    made = resized(Rendered(pixels, ""), size).pixels
    assert min(made.shape) == size
    assert abs(made.shape[0] / made.shape[1] - rows / columns) <= rows / columns / size

    def weights(before: int, after: int) -> np.ndarray:
        edges, step = np.arange(after + 1) * before / after, np.arange(before)
        overlap = np.minimum(edges[1:, None], step + 1) - np.maximum(edges[:-1, None], step)
        return np.clip(overlap, 0, None) / (before / after)

    expected = weights(rows, made.shape[0]) @ pixels @ weights(columns, made.shape[1]).T
    assert np.abs(made - expected).max() <= 2


def test_a_small_image_is_never_enlarged_and_says_so() -> None:
    small = Rendered(np.zeros((10, 20), np.uint8), "")
    made = resized(small, 64)
    assert made.pixels.shape == (10, 20)
    assert made.notes == ("smaller than the requested size",)
    assert resized(small, None) is small
