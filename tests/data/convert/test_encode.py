"""Encoded files are read back by other people's readers."""

import gzip
import io
import struct

import cv2
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from medlt.data.convert.encode import encode, jpeg, nifti, png
from medlt.data.images import kind_of
from medlt.data.nifti import slice_of

PIXELS = st.sampled_from((np.uint8, np.uint16)).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=2, max_side=40))
)


@given(pixels=PIXELS)
@settings(max_examples=80)
def test_pillow_and_opencv_read_the_same_pixels(pixels: np.ndarray) -> None:
    data = png(pixels)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), pixels)


def test_equal_pixels_give_equal_bytes_whatever_their_memory() -> None:
    pixels = np.arange(60, dtype=np.uint16).reshape(6, 10)
    assert png(pixels) == png(np.asfortranarray(pixels)) == png(np.ascontiguousarray(pixels[::-1])[::-1])


def test_jpeg_quality_is_what_was_asked() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    low, high = jpeg(pixels, 30), jpeg(pixels, 95)
    assert len(low) < len(high)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(high))), cv2.imdecode(np.frombuffer(high, np.uint8), cv2.IMREAD_GRAYSCALE)
    )
    assert np.abs(np.asarray(Image.open(io.BytesIO(high)), int) - pixels).mean() < 4


@given(pixels=PIXELS, scale=st.floats(-4, 4).filter(lambda s: abs(s) > 1e-3), offset=st.floats(-3000, 3000))
@settings(max_examples=40)
def test_nifti_holds_the_values_upright_with_their_spacing(pixels: np.ndarray, scale: float, offset: float) -> None:
    data = nifti(pixels, (0.2, 0.1), scale, offset)
    assert kind_of(data[:2048]) == "nifti"
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    assert nibabel.aff2axcodes(image.affine) == ("L", "I", "A")
    np.testing.assert_allclose(image.header.get_zooms(), (0.1, 0.2, 1.0), rtol=1e-6)
    expected = pixels * np.float64(np.float32(scale)) + np.float64(np.float32(offset))
    np.testing.assert_allclose(image.get_fdata()[:, :, 0].T, expected, rtol=1e-6, atol=1e-6)
    assert nifti(pixels, (0.2, 0.1), scale, offset) == data


def test_our_own_reader_gives_a_film_back_upright() -> None:
    pixels = np.arange(35, dtype=np.uint16).reshape(5, 7)
    values, notes = slice_of(nifti(pixels, None), None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(values, pixels)
    assert notes == ()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA", "AIR"])
@pytest.mark.parametrize("thin", [0, 1, 2])
def test_a_volume_is_sliced_across_its_thinnest_axis_in_any_orientation(axes: str, thin: int) -> None:
    """The same body, stored in other voxel orders, shows the same slice, right to left and top to bottom."""
    shape = [6, 7, 8]
    shape[thin] = 3
    body = np.random.default_rng(thin).random(shape)
    middle = np.take(body, 1, thin)[::-1, ::-1].T
    from_ras = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    ras = nibabel.Nifti1Image(body, np.eye(4))
    values, notes = slice_of(ras.as_reoriented(from_ras).to_bytes(), None)  # type: ignore[arg-type]
    np.testing.assert_allclose(values, middle)
    assert notes == ("slice 2 of 3",)


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff"), ("nifti", b"\x1f\x8b")])
def test_each_format_is_what_it_says(kind: str, magic: bytes) -> None:
    pixels = np.zeros((4, 4), np.uint8)
    assert encode(pixels, kind, 90, None, None, None).startswith(magic)


def test_png16_is_16_bits_deep() -> None:
    data = encode(np.zeros((4, 6), np.uint16), "png16", 90, None, None, None)
    assert struct.unpack(">2I2B", data[16:26]) == (6, 4, 16, 0)
