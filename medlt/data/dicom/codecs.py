"""Which decoder reads which transfer syntax: a pydicom plugin on imagecodecs beside those pydicom brings.

imagecodecs covers the JPEG processes that no permissively licensed plugin does (extended 12-bit, lossless), and is the
fastest exact decoder measured for RLE and HTJ2K; docs/decisions says how each was chosen. pydicom asks `is_available`
and `DECODER_DEPENDENCIES` of a plugin module, then calls `decode_frame` once a frame.
"""

from __future__ import annotations

from typing import Any

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import decoders

_NEEDS = ("numpy", "imagecodecs>=2024.9")
_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
DECODER_DEPENDENCIES = dict.fromkeys((*_JPEG, *_HTJ2K, uid.RLELossless), _NEEDS)
_DECODERS = (
    decoders.JPEGExtended12BitDecoder,
    decoders.JPEGLosslessDecoder,
    decoders.JPEGLosslessSV1Decoder,
    decoders.HTJ2KLosslessDecoder,
    decoders.HTJ2KLosslessRPCLDecoder,
    decoders.HTJ2KDecoder,
    decoders.RLELosslessDecoder,
)


def is_available(transfer_syntax: str) -> bool:
    """Whether this plugin can decode the transfer syntax here."""
    try:
        import imagecodecs
    except ImportError:
        return False
    codec = imagecodecs.JPEG8
    if transfer_syntax in _HTJ2K:
        codec = imagecodecs.HTJ2K
    elif transfer_syntax == uid.RLELossless:
        codec = imagecodecs.DICOMRLE
    return transfer_syntax in DECODER_DEPENDENCIES and bool(codec.available)


def decode_frame(src: bytes, runner: Any) -> bytes:
    """One frame to its stored samples, colour by pixel (PS3.5 A.4.1, A.4.2, A.4.4)."""
    import imagecodecs

    if runner.transfer_syntax == uid.RLELossless:
        return bytes(imagecodecs.dicomrle_decode(src, f"<u{runner.bits_allocated // 8}"))
    decode = imagecodecs.htj2k_decode if runner.transfer_syntax in _HTJ2K else imagecodecs.jpeg8_decode
    frame = decode(src)
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytes(frame.tobytes())


def preferred(data: Dataset) -> str:
    """The plugin to ask first, by pydicom's name for it; "" leaves the order to pydicom.

    Named, because pydicom asks whatever else is installed first: python-gdcm reads JPEG-LS 1.6 times slower.
    """
    syntax = data.file_meta.TransferSyntaxUID
    if syntax in uid.JPEGLSTransferSyntaxes:
        return "pyjpegls"
    plain = data.get("SamplesPerPixel", 1) == 1 and not data.get("PixelRepresentation", 0)
    ours = syntax in _JPEG or (plain and syntax in DECODER_DEPENDENCIES)
    return "medlt" if ours and is_available(syntax) else ""


def register() -> None:
    """Make pydicom know this plugin; calling it again changes nothing."""
    for decoder in _DECODERS:
        if not {"medlt"} & set(decoder.available_plugins) and is_available(decoder.UID):
            decoder.add_plugin("medlt", (__name__, "decode_frame"))
