"""Pixels that a strict reader loses or garbles: cells, fragments, transfer syntaxes and elements against the rules."""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

from medlt.data.dicom import Unreadable
from medlt.data.dicom.cells import PACKED, WIDE
from medlt.data.dicom.encapsulation import COMPRESSED, DELIMITER, NOT_COMPRESSED, OTHER_KIND, fragments
from medlt.data.dicom.guard import BITS_DROPPED, frame, open_bytes
from medlt.data.dicom.salvage import INVALID_VR, NO_DELIMITER
from medlt.data.dicom.streams import frame_bits, syntax_of

Header = Callable[..., Dataset]
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
PLACE = Path("file")
WHOLE: dict[uid.UID, Callable[[np.ndarray, int], bytes]] = {
    uid.JPEGLosslessSV1: lambda x, bits: imagecodecs.ljpeg_encode(x, bitspersample=bits),
    uid.JPEGLSLossless: lambda x, bits: imagecodecs.jpegls_encode(x),
    uid.JPEG2000Lossless: lambda x, bits: imagecodecs.jpeg2k_encode(
        x, codecformat="j2k", reversible=True, bitspersample=bits
    ),
    uid.HTJ2KLossless: lambda x, bits: imagecodecs.htj2k_encode(x),
}


def to_bytes(data: Dataset) -> bytes:
    """The file of a data set, pixels as they are."""
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def compressed(
    header: Header, streams: list[bytes], syntax: uid.UID, pixels: np.ndarray = RAMP, **tags: Any
) -> Dataset:
    """A data set of these streams, one per frame."""
    data = header(pixels, **{"PixelData": encapsulate(streams), **tags})
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = syntax
    return data


def rle(header: Header, cells: np.ndarray) -> bytes:
    """The cells as an RLE frame, every bit kept."""
    data = header(cells, BitsStored=16)
    data.compress(uid.RLELossless, generate_instance_uid=False)
    return get_frame(data.PixelData, 0, number_of_frames=1)


def under(syntax: uid.UID, raw: bytes) -> bytes:
    """The same data set behind a file meta that names another transfer syntax."""
    meta = pydicom.dcmread(BytesIO(raw), stop_before_pixels=True).file_meta
    meta.TransferSyntaxUID, buffer = syntax, BytesIO()
    pydicom.filewriter.write_file_meta_info(buffer, meta, enforce_standard=True)
    return raw[:132] + buffer.getvalue() + raw[144 + struct.unpack_from("<I", raw, 140)[0] :]


def read(raw: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    data, notes = open_bytes(raw, PLACE)
    values, more = frame(data, PLACE)
    return values, notes + more


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [*WHOLE, uid.RLELossless], ids=lambda kind: uid.UID(kind).keyword)
def test_whole_cells_are_aligned_by_high_bit(syntax: uid.UID, signed: bool, header: Header) -> None:
    """12 bits on top of 16, the low ones noise: a stream of 16-bit samples holds them as they lie (PS3.5 8.1.1)."""
    dirt = np.random.default_rng(0).integers(0, 16, RAMP.shape, dtype=np.uint16)
    cells = RAMP << 4 | dirt
    stream = rle(header, cells) if syntax == uid.RLELossless else bytes(WHOLE[syntax](cells, 16))
    tags = {"BitsStored": 12, "HighBit": 15, "PixelRepresentation": int(signed)}
    values, notes = read(to_bytes(compressed(header, [stream], syntax, **tags)))
    expected = np.where(RAMP >= 2048, RAMP.astype(int) - 4096, RAMP) if signed else RAMP
    np.testing.assert_array_equal(values, expected)
    assert notes == ()


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_a_stream_of_the_stored_bits_is_aligned_already(syntax: uid.UID, header: Header) -> None:
    if syntax == uid.JPEGLSLossless:  # imagecodecs states 16 bits whatever the values are, pyjpegls BitsStored
        data = header(RAMP, BitsStored=12)
        data.compress(syntax, generate_instance_uid=False)
        stream = get_frame(data.PixelData, 0, number_of_frames=1)
    else:
        stream = bytes(WHOLE[syntax](RAMP, 12))
    assert frame_bits(stream) == 12
    values, _ = read(to_bytes(compressed(header, [stream], syntax, BitsStored=12, HighBit=15)))
    np.testing.assert_array_equal(values, RAMP)


@pytest.mark.parametrize(
    "stream", [b"", b"\xff\xd8", b"\xff\x4f\xff\x51\0\0", b"text", b"\xff\xd8\xff\xc0\0", bytes(99)]
)
def test_no_bits_and_no_syntax_are_made_up(stream: bytes) -> None:
    assert frame_bits(stream) is None
    assert syntax_of(stream) in (None, uid.JPEG2000)
    assert syntax_of(stream) is None or stream.startswith(b"\xff\x4f")


def test_values_beyond_the_stored_bits_are_noted(header: Header) -> None:
    values, notes = read(to_bytes(header(RAMP * 16, BitsStored=12)))
    np.testing.assert_array_equal(values, (RAMP * 16) & 4095)
    assert notes == (BITS_DROPPED,)
    assert read(to_bytes(header(RAMP)))[1] == ()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("columns", [64, 63])
def test_packed_cells_of_12_bits_are_read(syntax: uid.UID, columns: int, header: Header) -> None:
    """Sample i is bits 12 i to 12 i + 11 of the stream, lowest first, in words of the file's byte order."""
    pixels = RAMP[:63, :columns].copy()
    bits = (pixels.reshape(-1, 1) >> np.arange(12) & 1).astype(np.uint8).ravel()
    packed = np.packbits(bits, bitorder="little").tobytes()
    packed += bytes(len(packed) % 2)
    big = syntax == uid.ExplicitVRBigEndian
    packed = np.frombuffer(packed, "<u2").byteswap().tobytes() if big else packed
    data = header(pixels, BitsAllocated=12, BitsStored=12, PixelData=packed)
    data["PixelData"].VR = "OW"
    data.file_meta.TransferSyntaxUID = syntax
    values, notes = read(to_bytes(data))
    np.testing.assert_array_equal(values, pixels)
    assert notes == (PACKED,)


def test_wide_cells_that_claim_12_bits_are_not_unpacked(header: Header) -> None:
    data = header(RAMP, BitsAllocated=12, BitsStored=12)
    data["PixelData"].VR = "OW"
    values, notes = read(to_bytes(data))
    np.testing.assert_array_equal(values, RAMP)
    assert notes == (WIDE,)


@pytest.mark.parametrize("size", [6142, 6148, 7000])
def test_packed_cells_of_another_length_are_refused(header: Header, size: int) -> None:
    data = header(RAMP, BitsAllocated=12, BitsStored=12, PixelData=bytes(size))
    data["PixelData"].VR = "OW"
    with pytest.raises(Unreadable):
        read(to_bytes(data))


@pytest.mark.parametrize("offsets", [(7,), (0, 999_999), (0, 100, 50, 3), (2**32 - 1,)])
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_offset_table_of_one_frame_does_not_count(offsets: tuple[int, ...], pieces: int, header: Header) -> None:
    stream = bytes(WHOLE[uid.JPEGLSLossless](RAMP, 12))
    body = encapsulate([stream], fragments_per_frame=pieces, has_bot=False)[8:]
    table = struct.pack(f"<HHI{len(offsets)}I", 0xFFFE, 0xE000, 4 * len(offsets), *offsets)
    for syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        values, notes = read(to_bytes(compressed(header, [], syntax, PixelData=table + body)))
        np.testing.assert_array_equal(values, RAMP)
        assert notes == ()


def test_a_stream_in_place_of_the_offset_table_is_pixels(header: Header) -> None:
    stream = bytes(WHOLE[uid.JPEGLSLossless](RAMP, 12))
    body = encapsulate([stream], has_bot=False)[8:]
    np.testing.assert_array_equal(read(to_bytes(compressed(header, [], uid.JPEGLSLossless, PixelData=body)))[0], RAMP)


def test_fragments_fill_their_element() -> None:
    value = encapsulate([b"abcd", b"efgh"])
    assert fragments(value)[1:] == [b"abcd", b"efgh"]
    assert fragments(value + DELIMITER + b"more") == fragments(value)
    with pytest.raises(ValueError, match="End of"):
        fragments(value[:-1])
    with pytest.raises(ValueError, match="no fragment at offset"):
        fragments(value + b"12345678")


SALVAGED = [uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.JPEGLSLossless, uid.RLELossless]


def stream_of(syntax: uid.UID, header: Header) -> bytes:
    return rle(header, RAMP) if syntax == uid.RLELossless else bytes(WHOLE[syntax](RAMP, 12))


@pytest.mark.parametrize("syntax", SALVAGED, ids=lambda kind: uid.UID(kind).keyword)
def test_a_missing_delimiter_at_the_end_of_the_file_is_noted(syntax: uid.UID, header: Header) -> None:
    whole = to_bytes(compressed(header, [stream_of(syntax, header)], syntax))
    assert whole.endswith(DELIMITER)
    values, notes = read(whole[:-8])
    np.testing.assert_array_equal(values, RAMP)
    assert notes == (NO_DELIMITER,)


@pytest.mark.parametrize("syntax", SALVAGED, ids=lambda kind: uid.UID(kind).keyword)
@pytest.mark.parametrize("cut", [10, 200])
def test_a_fragment_that_is_cut_is_still_truncated(syntax: uid.UID, cut: int, header: Header) -> None:
    with pytest.raises(Unreadable) as refused:
        read(to_bytes(compressed(header, [stream_of(syntax, header)], syntax))[:-cut])
    assert refused.value.code == "truncated"


def test_a_stream_whose_last_fragment_is_missing_is_truncated(header: Header) -> None:
    stream = stream_of(uid.JPEG2000Lossless, header)
    pieces = encapsulate([stream], fragments_per_frame=2, has_bot=False)
    first = pieces[: 16 + struct.unpack_from("<I", pieces, 12)[0]]
    whole = to_bytes(compressed(header, [], uid.JPEG2000Lossless, PixelData=first))
    with pytest.raises(Unreadable) as refused:
        read(whole[:-8])
    assert refused.value.code == "truncated"


@pytest.mark.parametrize("syntax", SALVAGED, ids=lambda kind: uid.UID(kind).keyword)
def test_uncompressed_pixels_under_a_compressed_syntax_are_read(syntax: uid.UID, header: Header) -> None:
    values, notes = read(under(syntax, to_bytes(header(RAMP))))
    np.testing.assert_array_equal(values, RAMP)
    assert notes == (NOT_COMPRESSED,)


@pytest.mark.parametrize("syntax", SALVAGED, ids=lambda kind: uid.UID(kind).keyword)
def test_a_stream_under_an_uncompressed_syntax_is_read(syntax: uid.UID, header: Header) -> None:
    raw = to_bytes(compressed(header, [stream_of(syntax, header)], syntax))
    values, notes = read(under(uid.ExplicitVRLittleEndian, raw))
    np.testing.assert_array_equal(values, RAMP)
    assert notes == (COMPRESSED,)


@pytest.mark.parametrize("declared", SALVAGED, ids=lambda kind: uid.UID(kind).keyword)
@pytest.mark.parametrize("syntax", SALVAGED, ids=lambda kind: uid.UID(kind).keyword)
def test_a_stream_under_another_compressed_syntax_is_read(syntax: uid.UID, declared: uid.UID, header: Header) -> None:
    values, notes = read(under(declared, to_bytes(compressed(header, [stream_of(syntax, header)], syntax))))
    np.testing.assert_array_equal(values, RAMP)
    assert notes == (() if syntax == declared else (OTHER_KIND,))


def with_element(raw: bytes, element: bytes, before: int = 0x00280002) -> bytes:
    """The file with these bytes in front of the element of that tag."""
    data = pydicom.dcmread(BytesIO(raw))
    at = data.get_item(before).value_tell - 8
    return raw[:at] + element + raw[at:]


HEAD = struct.pack("<HH", 0x0021, 0x1001)
INVALID = {
    "16 bit length": HEAD + b"--" + struct.pack("<H", 6) + b"abcdef",
    "32 bit length": HEAD + b"--\0\0" + struct.pack("<I", 70_000) + bytes(70_000),
    "small letters": HEAD + b"lo" + struct.pack("<H", 4) + b"abcd",
    "no letters": HEAD + b"\x01\x02" + struct.pack("<H", 4) + b"abcd",
    "three of them": b"".join(struct.pack("<HH", 0x21, e) + b"??" + struct.pack("<H", 2) + b"xy" for e in (1, 2, 3)),
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLSLossless], ids=["native", "JPEG-LS"])
def test_an_invalid_vr_does_not_lose_the_image(name: str, syntax: uid.UID, header: Header) -> None:
    data = (
        header(RAMP)
        if syntax == uid.ExplicitVRLittleEndian
        else compressed(header, [stream_of(syntax, header)], syntax)
    )
    raw = with_element(to_bytes(data), INVALID[name])
    assert "PixelData" not in pydicom.dcmread(BytesIO(raw))  # a strict parse loses it
    values, notes = read(raw)
    np.testing.assert_array_equal(values, RAMP)
    assert notes == (INVALID_VR,)


@pytest.mark.parametrize("bad", [b"--", b"\x01\x02"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("open_ended", [True, False])
def test_an_invalid_vr_inside_a_sequence_does_not_lose_the_image(
    header: Header, bad: bytes, depth: int, open_ended: bool
) -> None:
    """PS3.5 7.5: items and sequences of defined and of undefined length, one inside the other."""
    inner = HEAD + bad + struct.pack("<H", 4) + b"abcd" + struct.pack("<HH2sH", 0x21, 0x1002, b"LO", 2) + b"x "
    for _ in range(depth):
        size = 2**32 - 1 if open_ended else len(inner)
        item = struct.pack("<HHI", 0xFFFE, 0xE000, size) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0) * open_ended
        size = 2**32 - 1 if open_ended else len(item)
        end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) * open_ended
        inner = struct.pack("<HH2sHI", 0x18, 0x9506, b"SQ", 0, size) + item + end
    values, notes = read(with_element(to_bytes(header(RAMP)), inner))
    np.testing.assert_array_equal(values, RAMP)
    assert notes == ((INVALID_VR,) if open_ended else ())


def test_no_pixels_means_that_the_parse_reached_the_end(header: Header) -> None:
    data = header(RAMP)
    del data.PixelData
    raw, codes = to_bytes(data), {}
    lost = with_element(raw, HEAD + b"--" + struct.pack("<H", 9999) + b"abcdef")
    stray = with_element(to_bytes(header(RAMP)), struct.pack("<HHI", 0xFFFE, 0xE00D, 0))
    for name, whole in {"whole": raw, "lost": lost, "stray": stray, "cut": raw[:-1]}.items():
        with pytest.raises(Unreadable) as refused:
            read(whole)
        codes[name] = refused.value.code
    assert codes == {"whole": "no_pixels", "lost": "corrupt", "stray": "corrupt", "cut": "truncated"}


def test_a_stream_names_its_transfer_syntax(header: Header) -> None:
    actual = {syntax: syntax_of(stream_of(syntax, header)) for syntax in SALVAGED}
    assert actual == {
        uid.JPEGLosslessSV1: uid.JPEGLossless,
        uid.JPEG2000Lossless: uid.JPEG2000,
        uid.HTJ2KLossless: uid.HTJ2K,
        uid.JPEGLSLossless: uid.JPEGLSLossless,
        uid.RLELossless: uid.RLELossless,
    }
