"""Compressed pixels in a file: fragments, the first frame's stream, and a transfer syntax that contradicts them."""

from __future__ import annotations

import struct

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from medlt.data.dicom.cells import plain_length
from medlt.data.dicom.streams import syntax_of

DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
NOT_COMPRESSED = "pixels are uncompressed, the transfer syntax is a compressed one"
COMPRESSED = "pixels are compressed, the transfer syntax is an uncompressed one"
OTHER_KIND = "pixels are compressed in another way than the transfer syntax says"
_KINDS = (
    (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit),
    (uid.JPEGLossless, uid.JPEGLosslessSV1),
    (uid.JPEGLSLossless, uid.JPEGLSNearLossless),
    (uid.JPEG2000Lossless, uid.JPEG2000),
    (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
    (uid.RLELossless,),
)
_ITEM, _END = 0xE000, 0xE0DD


def fragments(value: bytes) -> list[bytes]:
    """Return the items of encapsulated pixels (PS3.5 A.4), the offset table first.

    Raises ValueError if something else lies between them, or if the last one ends behind `value`.
    """
    parts: list[bytes] = []
    at = 0
    while at + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHI", value, at)
        if (group, element) == (0xFFFE, _END):
            break
        if (group, element) != (0xFFFE, _ITEM):
            raise ValueError(f"no fragment at offset {at} of the pixel data")
        if at + 8 + length > len(value):
            raise ValueError("End of the pixel data inside a fragment")
        parts.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    return parts


def frame_stream(data: Dataset, index: int = 0) -> bytes:
    """Return the compressed stream of a frame, counted from 0.

    All fragments of a single frame belong to it, whatever its offset table says: the table is often wrong, or has one
    entry per fragment.
    """
    count = int(data.get("NumberOfFrames") or 1)
    if count > 1:
        tables = [data.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        extended = (tables[0], tables[1]) if all(tables) else None
        return bytes(get_frame(data.PixelData, index, number_of_frames=count, extended_offsets=extended))
    table, *rest = fragments(data.PixelData)
    return b"".join(rest) if not syntax_of(table) else b"".join([table, *rest])


def which_frame(data: Dataset, index: int) -> tuple[str, ...]:
    """Return a note on which of several frames it is, counted from 0."""
    count = int(data.get("NumberOfFrames") or 1)
    if count < 2:
        return ()
    return (f"frame {index + 1} of {count}" if index else f"first of {count} frames",)


def single_frame(data: Dataset, stream: bytes) -> Dataset:
    """Return the image pixel attributes of `data` with this stream as the only frame.

    pydicom refuses compressed pixels that happen to be as long as uncompressed ones; a sequence delimiter behind them
    (PS3.5 annex A.4) makes them longer without changing their meaning.
    """
    alone = data.group_dataset(0x0028)
    alone.file_meta = data.file_meta
    alone.add_new("NumberOfFrames", "IS", 1)  # an assignment would change the element that `data` shares
    head = struct.pack("<HHIHHI", 0xFFFE, _ITEM, 0, 0xFFFE, _ITEM, len(stream) + len(stream) % 2)
    pixels = b"".join([head, stream, b"\0" * (len(stream) % 2)])
    excess = len(pixels) - plain_length(alone)
    alone.add_new("PixelData", "OB", pixels + DELIMITER if excess in (0, 1) else pixels)
    return alone


def mend_syntax(data: Dataset) -> tuple[str, ...]:
    """Correct a transfer syntax that contradicts the pixels (PS3.5 A.4), in place; return a note.

    Uncompressed pixels are those of the declared length without items; compressed ones are items with a stream whose
    kind can be recognised. A stream of another kind than the declared one is decoded as what it is.
    """
    syntax = UID(str(data.file_meta.TransferSyntaxUID))
    if "PixelData" not in data or syntax.is_private or not syntax.is_transfer_syntax:
        return ()
    element = data["PixelData"]
    if syntax.is_encapsulated and not element.is_undefined_length:
        if element.value[:4] == b"\xfe\xff\x00\xe0" or len(element.value) - plain_length(data) not in (0, 1):
            return ()
        data.file_meta.TransferSyntaxUID = _plain_syntax(data)
        return (NOT_COMPRESSED,)
    actual = _actual_syntax(element.value) if element.is_undefined_length else None
    if actual is None or _kind(actual) == _kind(syntax):
        return ()
    data.file_meta.TransferSyntaxUID = actual
    return (OTHER_KIND if syntax.is_encapsulated else COMPRESSED,)


def _kind(syntax: UID) -> int:
    """Return which group of syntaxes has the same streams; a number of its own for one that medlt does not know."""
    return next((at for at, group in enumerate(_KINDS) if syntax in group), -1)


def _actual_syntax(value: bytes) -> UID | None:
    try:
        return syntax_of(b"".join(fragments(value)[1:2]))
    except ValueError:
        return None


def _plain_syntax(data: Dataset) -> UID:
    implicit, little = data.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRBigEndian if little is False else uid.ExplicitVRLittleEndian


def is_whole(value: bytes) -> bool:
    """Return whether encapsulated pixels end with a whole fragment, and a JPEG or JPEG 2000 stream with its end."""
    try:
        parts = fragments(value)
    except ValueError:
        return False
    if len(parts) < 2:
        return False
    syntax = syntax_of(parts[1])
    return syntax in (None, uid.RLELossless) or parts[-1].rstrip(b"\0").endswith(b"\xff\xd9")
