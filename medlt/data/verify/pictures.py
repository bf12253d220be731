"""PNG, JPEG and NIfTI files: chunks, segments and header fields that no viewer needs, and text in the image."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import nibabel

from medlt.data.deidentify import Detector
from medlt.data.images import read_picture
from medlt.data.nifti import slice_of
from medlt.data.verify.codestreams import hidden
from medlt.data.verify.dicom import TEXT

_PNG = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"sBIT"))
"""Chunks of a PNG that hold no text."""
_FIELDS = ("descrip", "aux_file", "intent_name", "db_name")
_FILE = Path("file")


def picture_file(kind: str, raw: bytes, detector: Detector) -> Iterator[str]:
    """Yield what a picture of this kind (png, jpeg, nifti) still holds. Never raises."""
    try:
        yield from {"png": _png, "jpeg": _jpeg, "nifti": _nifti}[kind](raw)
        values = slice_of(raw, _FILE)[0] if kind == "nifti" else read_picture(raw, _FILE)
        if boxes := detector(values):
            yield f"{len(boxes)} {TEXT}"
    except Exception as error:  # hostile bytes may raise any exception, and its text may quote them
        yield f"bytes that cannot be read as {kind} ({type(error).__name__})"


def _png(raw: bytes) -> Iterator[str]:
    at, kind = 8, b""
    while kind != b"IEND" and at + 12 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, at)
        if kind not in _PNG:
            yield f"a chunk {kind.decode('latin-1')!r}"
        at += 12 + length
    if at < len(raw):
        yield "bytes behind the end of the image"


def _jpeg(raw: bytes) -> Iterator[str]:
    yield from hidden(raw, 0, 0)


def _nifti(raw: bytes) -> Iterator[str]:
    """Yield the header's text fields and extensions (NIfTI-1), and bytes before or behind the voxels."""
    plain = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    image = nibabel.Nifti1Image.from_bytes(plain)
    for field in _FIELDS:
        if bytes(image.header[field].tobytes()).strip(b"\0"):
            yield f"a text in the header field {field}"
    if image.header.extensions:
        yield "header extensions"
    shape, kind = image.header.get_data_shape(), image.header.get_data_dtype()
    voxels = int(image.dataobj.offset) + kind.itemsize * math.prod(shape)
    if len(plain) > voxels:
        yield "bytes behind the voxels"
    if raw[:2] == b"\x1f\x8b" and raw[3] & 0b11100:
        yield "a name or a comment in the gzip header"
