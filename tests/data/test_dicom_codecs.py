"""Streams made by other encoders come back exactly, by the short road and by pydicom's; bombs and cuts are seen."""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medlt.data.dicom import Unreadable, codecs
from medlt.data.dicom.guard import stored_values
from medlt.data.dicom.streams import frame_size, lacks_end_marker

Header = Callable[..., Dataset]
ENCODE: dict[UID, Callable[[np.ndarray, int], bytes]] = {
    JPEGLosslessSV1: lambda x, bits: imagecodecs.ljpeg_encode(x, bitspersample=bits),
    JPEGLSLossless: lambda x, bits: imagecodecs.jpegls_encode(x),
    JPEG2000Lossless: lambda x, bits: imagecodecs.jpeg2k_encode(
        x, codecformat="j2k", reversible=True, bitspersample=bits
    ),
    HTJ2KLossless: lambda x, bits: imagecodecs.htj2k_encode(x),
}


def file(header: Header, pixels: np.ndarray, syntax: UID, stream: bytes | None = None, **more: Any) -> Dataset:
    """A data set whose pixels are `stream`, or encoded in `syntax`."""
    bits = 8 * pixels.dtype.itemsize
    data = header(pixels, BitsStored=bits, HighBit=bits - 1, **more)
    if syntax == RLELossless:
        data.compress(RLELossless, generate_instance_uid=False)
        return data
    data.PixelData = encapsulate([bytes(stream or ENCODE[syntax](pixels, bits))])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = syntax
    return data


PIXELS = st.sampled_from((np.uint8, np.uint16)).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=2, min_side=8, max_side=24))
)


@pytest.mark.parametrize("syntax", [*ENCODE, RLELossless], ids=lambda uid: uid.name)
@given(pixels=PIXELS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_stored_value_comes_back(syntax: UID, header: Header, pixels: np.ndarray) -> None:
    data = file(header, pixels, syntax)
    assume(len(get_frame(data.PixelData, 0, number_of_frames=1)) != pixels.nbytes)
    np.testing.assert_array_equal(stored_values(data, None), pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(24, 24), (35, 35)], ids=["even", "odd"])
@pytest.mark.parametrize("delimiter", [0, 8], ids=["without", "with a delimiter"])
def test_compressed_pixels_as_long_as_uncompressed_ones_are_read(
    shape: tuple[int, int], delimiter: int, header: Header
) -> None:
    """A coincidence that pydicom takes for a wrong transfer syntax; here padding after the stream brings it about."""
    pixels = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    stream = ENCODE[JPEG2000Lossless](pixels, 8)
    wanted = pixels.nbytes + pixels.nbytes % 2 - delimiter
    data = file(header, pixels, JPEG2000Lossless, stream + bytes(wanted - len(encapsulate([stream]))))
    assert len(data.PixelData) == wanted
    np.testing.assert_array_equal(stored_values(data, None), pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, RLELossless], ids=lambda u: u.name)
def test_the_short_road_is_taken_and_agrees_with_pydicoms(syntax: UID, header: Header) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 30), dtype=np.uint16)
    data = file(header, pixels, syntax)
    codecs.register()
    straight = codecs.direct(get_frame(data.PixelData, 0, number_of_frames=1), data)
    assert straight is not None
    np.testing.assert_array_equal(straight, pixel_array(data))


@pytest.mark.parametrize("tags", [{"PixelRepresentation": 1}, {"SamplesPerPixel": 3}])
def test_signed_and_colour_never_take_the_short_road(tags: dict[str, int], header: Header) -> None:
    data = file(header, np.zeros((8, 8), np.uint16), JPEGLSLossless, **tags)
    assert codecs.direct(get_frame(data.PixelData, 0, number_of_frames=1), data) is None


def test_signed_values_keep_their_sign(header: Header) -> None:
    pixels = np.random.default_rng(0).integers(-3000, 3000, (16, 20), dtype=np.int16)
    data = file(header, pixels, RLELossless)
    np.testing.assert_array_equal(stored_values(data, None), pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize("syntax", ENCODE, ids=lambda uid: uid.name)
@given(rows=st.integers(8, 300), columns=st.integers(8, 300))
@settings(max_examples=15)
def test_a_stream_tells_its_own_size(syntax: UID, rows: int, columns: int) -> None:
    stream = bytes(ENCODE[syntax](np.zeros((rows, columns), np.uint16), 16))
    assert frame_size(stream) == (rows, columns)


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\xff\x4f\xff\x51\0\0", b"text", b"\xff\xd8\xff\xc0\0"])
def test_no_size_is_made_up(stream: bytes) -> None:
    assert frame_size(stream) is None


@pytest.mark.parametrize("syntax", ENCODE, ids=lambda uid: uid.name)
def test_a_stream_of_another_size_is_refused_before_it_is_decoded(
    syntax: UID, header: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 100-byte stream may claim 60,000 x 60,000 pixels; its file says 8 x 8."""
    data = file(header, np.zeros((16, 16), np.uint16), syntax)
    data.Rows = 8
    monkeypatch.setattr(codecs, "direct", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(Unreadable, match="16 x 16, the header has 8 x 16") as refused:
        stored_values(data, None)  # type: ignore[arg-type]
    assert refused.value.code == "corrupt"


@pytest.mark.parametrize("syntax", ENCODE, ids=lambda uid: uid.name)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_stream_is_not_filled_in(share: float, syntax: UID, header: Header) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    whole = bytes(ENCODE[syntax](pixels, 16))
    data = file(header, pixels, syntax, whole[: int(share * len(whole))])
    with pytest.raises(Unreadable) as refused:
        stored_values(data, None)  # type: ignore[arg-type]
    assert refused.value.code in ("truncated", "corrupt")


def test_a_whole_jpeg_without_its_end_marker_is_read(header: Header) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    whole = bytes(imagecodecs.ljpeg_encode(pixels, bitspersample=16))
    assert lacks_end_marker(whole[:-2])
    data = file(header, pixels, JPEGLosslessSV1, whole[:-2])
    np.testing.assert_array_equal(stored_values(data, None), pixels)  # type: ignore[arg-type]


def test_padding_behind_the_end_marker_is_no_cut() -> None:
    data = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    frame = get_frame(data.PixelData, 0, number_of_frames=1)
    assert not lacks_end_marker(frame)
    assert not lacks_end_marker(b"\xff\xd8" + b"\xff\xd9\0")
    assert lacks_end_marker(b"\xff\xd8" + bytes(10))
    assert not lacks_end_marker(b"\xff\x4f\xff\x51 not a JPEG")


def test_a_baseline_jpeg_takes_pydicoms_road(header: Header) -> None:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    stream = cv2.imencode(".jpg", pixels)[1].tobytes()
    data = file(header, pixels, JPEGBaseline8Bit, stream)
    read = stored_values(data, None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read, cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE))


def test_a_damaged_rle_stream_is_an_error_not_a_panic(header: Header) -> None:
    data = file(header, np.random.default_rng(0).integers(0, 9, (32, 32), dtype=np.uint16), RLELossless)
    frame = bytearray(get_frame(data.PixelData, 0, number_of_frames=1))
    frame[4:8] = struct.pack("<I", 2**31)
    data.PixelData = encapsulate([bytes(frame)])
    with pytest.raises(Unreadable) as refused:
        stored_values(data, None)  # type: ignore[arg-type]
    assert refused.value.code in ("corrupt", "truncated")


@pytest.mark.parametrize("padding", [0, 1, 2, 64])
def test_zeros_behind_an_rle_stream_are_padding(padding: int, header: Header) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 32), dtype=np.uint16)
    data = file(header, pixels, RLELossless)
    data.PixelData = encapsulate([get_frame(data.PixelData, 0, number_of_frames=1) + bytes(padding)])
    np.testing.assert_array_equal(stored_values(data, None), pixels)  # type: ignore[arg-type]


def test_threads_that_register_at_once_register_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom raises where a plugin is added twice, and another thread may run between the question and the adding."""

    class Slow:
        """A decoder of pydicom's that takes a while to add a plugin."""

        UID = JPEGLosslessSV1
        available_plugins: tuple[str, ...] = ()
        added = 0

        def add_plugin(self, name: str, where: tuple[str, str]) -> None:
            Event().wait(0.05)
            self.added += 1
            self.available_plugins = (name,)

    decoder = Slow()
    monkeypatch.setattr(codecs, "_DECODERS", (decoder,))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: codecs.register(), range(8)))
    assert decoder.added == 1
