"""Which decoder reads which transfer syntax: imagecodecs beside the plugins that pydicom brings.

imagecodecs covers the JPEG processes that no permissively licensed plugin does (extended 12-bit, lossless), and is the
fastest exact decoder measured for RLE and JPEG-LS; docs/decisions says how each was chosen. As a pydicom plugin, this
module is asked `is_available` and `DECODER_DEPENDENCIES`, then `decode_frame` once a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import decoders

_NEEDS = ("numpy", "imagecodecs>=2024.9")
_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys(_JPEG, _NEEDS)
_DECODERS = (
    decoders.JPEGExtended12BitDecoder,
    decoders.JPEGLosslessDecoder,
    decoders.JPEGLosslessSV1Decoder,
)


def is_available(transfer_syntax: str) -> bool:
    """Whether this plugin can decode the transfer syntax here."""
    try:
        import imagecodecs
    except ImportError:
        return False
    return transfer_syntax in DECODER_DEPENDENCIES and bool(imagecodecs.JPEG8.available)


def decode_frame(src: bytes, runner: Any) -> bytes:
    """One frame's JPEG stream to its stored samples, colour by pixel (PS3.5 A.4.1)."""
    import imagecodecs

    frame = imagecodecs.jpeg8_decode(src)
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytes(frame.tobytes())


def direct(frame: bytes, data: Dataset) -> np.ndarray | None:
    """One plain frame (one sample, unsigned) straight to [H,W], without the copies of the plugin's road.

    None where that is not offered, the stream disagrees with the tags, or the decoder fails: pydicom then has its say.
    Raises whatever the RLE decoder raises.
    """
    decode = _DIRECT.get(data.file_meta.TransferSyntaxUID)
    if decode is None or not _plain(data):
        return None
    kind, shape = np.dtype(f"<u{int(data.BitsAllocated) // 8}"), (int(data.Rows), int(data.Columns))
    try:
        values = decode(frame, kind)
        values = values if isinstance(values, np.ndarray) else np.frombuffer(values, kind).reshape(shape)
    except Exception as error:
        if isinstance(error, MemoryError) or decode is _rle:  # pydicom cuts or fills what does not fit, unasked
            raise
        return None
    return values if values.dtype == kind and values.shape == shape else None


def _plain(data: Dataset) -> bool:
    """Whether the tags say so, in words the standard knows: pydicom refuses others, and this road must as well."""
    gray = data.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    unsigned = data.get("SamplesPerPixel") == 1 and data.get("PixelRepresentation") == 0
    return bool(gray and unsigned and 1 <= int(data.BitsStored) <= int(data.BitsAllocated))


def whole_without_end(frame: bytes) -> bool:
    """Whether a JPEG stream without its end-of-image marker still holds the whole picture, as some real files do.

    Decoders make up what is missing from a cut stream, silently. So it is decoded twice, with other bytes behind it:
    they reach the pixels only if pixels were missing.
    """
    import imagecodecs

    try:
        pictures = [imagecodecs.jpeg8_decode(frame + more + b"\xff\xd9") for more in (b"", b"\xaa" * 64, b"\x35" * 64)]
    except Exception:
        return False
    return all(np.array_equal(pictures[0], picture) for picture in pictures[1:])


def _named(name: str) -> Callable[[bytes, np.dtype[Any]], Any]:
    """imagecodecs' decoder of that name, looked up when it is first needed."""

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
    """The plugin to ask first, by pydicom's name for it; "" leaves the order to pydicom.

    python-gdcm, when installed, is asked first and reads JPEG-LS 1.6 times slower. pylibjpeg-rle panics on a damaged
    stream, which is no Python exception; pydicom's own decoder says what is wrong.
    """
    syntax = data.file_meta.TransferSyntaxUID
    if syntax == uid.RLELossless:
        return "pydicom"
    return "pyjpegls" if syntax in uid.JPEGLSTransferSyntaxes else ""


_registering = Lock()  # pydicom refuses a plugin it has, and images are read by several threads


def register() -> None:
    """Make pydicom know this plugin; calling it again, from any thread, changes nothing."""
    with _registering:
        for decoder in _DECODERS:
            if not {"medlt"} & set(decoder.available_plugins) and is_available(decoder.UID):
                decoder.add_plugin("medlt", (__name__, "decode_frame"))
