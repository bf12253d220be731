"""A pydicom decoder plugin on imagecodecs, for the JPEG processes no permissively licensed plugin covers.

pydicom asks `is_available` and `DECODER_DEPENDENCIES` of a plugin module, then calls `decode_frame` once a frame.
"""

from __future__ import annotations

from typing import Any

from pydicom import uid
from pydicom.pixels import decoders

_NEEDS = ("numpy", "imagecodecs>=2024.9")
DECODER_DEPENDENCIES = {uid.JPEGExtended12Bit: _NEEDS, uid.JPEGLossless: _NEEDS, uid.JPEGLosslessSV1: _NEEDS}


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


def register() -> None:
    """Make pydicom know this plugin; calling it again changes nothing."""
    for decoder in (
        decoders.JPEGExtended12BitDecoder,
        decoders.JPEGLosslessDecoder,
        decoders.JPEGLosslessSV1Decoder,
    ):
        if not {"medlt"} & set(decoder.available_plugins) and is_available(decoder.UID):
            decoder.add_plugin("medlt", (__name__, "decode_frame"))
