"""Chooses the decoder of each transfer syntax: imagecodecs, or a plugin of pydicom.

imagecodecs decodes the JPEG processes that no permissively licensed plugin decodes (extended 12-bit, lossless), and is
the fastest exact decoder measured for RLE and JPEG-LS; docs/decisions gives the reasons. This module is a pydicom
plugin: pydicom reads `is_available` and `DECODER_DEPENDENCIES`, and calls `decode_frame` once per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from threading import Lock
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import decoders

from medlt.data.dicom.streams import frame_bits

_NEEDS = ("numpy", "imagecodecs>=2024.9")
_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys(_JPEG, _NEEDS)
_PACKAGES: dict[str, tuple[str, ...]] = {
    uid.JPEGBaseline8Bit: ("pillow",),
    **dict.fromkeys(_JPEG, ("imagecodecs",)),
    uid.RLELossless: ("imagecodecs",),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, ("pyjpegls", "imagecodecs")),
    **dict.fromkeys(
        (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
        ("pylibjpeg", "pylibjpeg-openjpeg"),
    ),
}
_WAVELETS = (uid.JPEG2000Lossless, uid.JPEG2000)
_DECODERS = (
    decoders.JPEGExtended12BitDecoder,
    decoders.JPEGLosslessDecoder,
    decoders.JPEGLosslessSV1Decoder,
)


def packages(transfer_syntax: str) -> tuple[str, ...]:
    """Return the packages whose decoders read a compressed transfer syntax; empty if medlt needs none."""
    return _PACKAGES.get(transfer_syntax, ())


def is_available(transfer_syntax: str) -> bool:
    """Return whether this plugin can decode the transfer syntax on this machine."""
    try:
        import imagecodecs
    except ImportError:
        return False
    return transfer_syntax in DECODER_DEPENDENCIES and bool(imagecodecs.JPEG8.available)


def decode_frame(src: bytes, runner: Any) -> bytes:
    """Decode the JPEG stream of one frame to stored samples, colour by pixel (PS3.5 A.4.1)."""
    import imagecodecs

    frame = imagecodecs.jpeg8_decode(src)
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytes(frame.tobytes())


def direct(frame: bytes, data: Dataset, reduce: int = 1) -> np.ndarray | None:
    """Decode one grey, unsigned frame to [H,W], without the copies that pydicom's plugin interface makes.

    JPEG 2000 is decoded at 1/`reduce` (2 or 4) of its resolution, if that is possible.

    Returns None if this syntax has no direct decoder, the stream contradicts the tags, or the decoder fails; pydicom
    then decodes the frame. Raises the errors of the RLE decoder.
    """
    if reduce > 1 and (values := _reduced(frame, data, reduce)) is not None:
        return values
    decode = _DIRECT.get(data.file_meta.TransferSyntaxUID)
    if decode is None or not _plain(data):
        return None
    kind, shape = np.dtype(f"<u{int(data.BitsAllocated) // 8}"), (int(data.Rows), int(data.Columns))
    try:
        values = decode(frame, kind)
        values = values if isinstance(values, np.ndarray) else np.frombuffer(values, kind).reshape(shape)
    except Exception as error:
        if isinstance(error, MemoryError) or decode is _rle:  # pydicom silently cuts or pads RLE frames
            raise
        return None
    return values if values.dtype == kind and values.shape == shape else None


def _reduced(frame: bytes, data: Dataset, factor: int) -> np.ndarray | None:
    """Decode one grey, unsigned frame of JPEG 2000 at 1/`factor` (2 or 4) of its resolution, [ceil(H/f), ceil(W/f)].

    Its wavelet holds such an image (ISO 15444-1 annex F), and decoding stops there. Pillow, the only library here that
    can do it, shifts samples to the top of 8 or 16 bits, and cannot read some sizes at a quarter; half the factor is
    used then. Returns None if no reduction is possible; so for a truncated stream, which the caller must refuse.
    """
    from PIL import Image

    bits = frame_bits(frame[:64]) or 0
    fits = data.file_meta.TransferSyntaxUID in _WAVELETS and _plain(data) and 0 < bits <= int(data.BitsAllocated)
    if factor < 2 or not fits or len(frame) < 64 or frame[42] & 0x80:
        return None
    try:
        with Image.open(BytesIO(frame), formats=("JPEG2000",)) as image:
            image.reduce = factor.bit_length() - 1  # type: ignore[assignment,method-assign]
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _reduced(frame, data, factor // 2)
    return (values >> (8 * values.dtype.itemsize - bits)).astype(f"<u{int(data.BitsAllocated) // 8}")


def _plain(data: Dataset) -> bool:
    """Return whether the tags are those of a grey, unsigned frame, with values that the standard defines.

    pydicom refuses other values, so the direct decoder must refuse them too.
    """
    gray = data.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    unsigned = data.get("SamplesPerPixel") == 1 and data.get("PixelRepresentation") == 0
    return bool(gray and unsigned and 1 <= int(data.BitsStored) <= int(data.BitsAllocated))


def whole_without_end(frame: bytes) -> bool:
    """Return whether a JPEG stream without its end-of-image marker holds the whole picture, as in some real files.

    Decoders fill the missing part of a truncated stream silently. So it is decoded with different bytes appended: they
    change the pixels only if pixels are missing.
    """
    import imagecodecs

    try:
        pictures = [imagecodecs.jpeg8_decode(frame + more + b"\xff\xd9") for more in (b"", b"\xaa" * 64, b"\x35" * 64)]
    except Exception:
        return False
    return all(np.array_equal(pictures[0], picture) for picture in pictures[1:])


def _named(name: str) -> Callable[[bytes, np.dtype[Any]], Any]:
    """Return the imagecodecs decoder of that name, imported at the first call."""

    def decode(frame: bytes, kind: np.dtype[Any]) -> Any:
        import imagecodecs

        return getattr(imagecodecs, name)(frame)

    return decode


def _rle(frame: bytes, kind: np.dtype[Any]) -> Any:
    import imagecodecs

    try:
        return imagecodecs.dicomrle_decode(frame, kind)
    except RuntimeError:  # more padding than the one byte of PS3.5 G.3.1
        return imagecodecs.dicomrle_decode(frame.rstrip(b"\0"), kind)


_DIRECT: dict[str, Callable[[bytes, np.dtype[Any]], Any]] = {
    uid.RLELossless: _rle,
    **dict.fromkeys(_JPEG, _named("jpeg8_decode")),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, _named("jpegls_decode")),
}


def preferred(data: Dataset) -> str:
    """Return pydicom's name of the plugin to use, or "" for pydicom's own order.

    If python-gdcm is installed, pydicom uses it first, and it reads JPEG-LS 1.6 times slower. pylibjpeg-rle panics on
    a damaged stream, which is not a Python exception; pydicom's own RLE decoder raises an error with the cause.
    """
    syntax = data.file_meta.TransferSyntaxUID
    if syntax == uid.RLELossless:
        return "pydicom"
    return "pyjpegls" if syntax in uid.JPEGLSTransferSyntaxes else ""


_registering = Lock()  # pydicom refuses a plugin it has, and images are read by several threads


def register() -> None:
    """Register this plugin with pydicom; a second call, from any thread, has no effect."""
    with _registering:
        for decoder in _DECODERS:
            if not {"medlt"} & set(decoder.available_plugins) and is_available(decoder.UID):
                decoder.add_plugin("medlt", (__name__, "decode_frame"))
