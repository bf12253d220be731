"""Reads the size, the bits per sample and the kind of a compressed frame from its own header, before decoding."""

from __future__ import annotations

import struct

from pydicom import uid
from pydicom.uid import UID

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # ISO 10918-1 B.2.2, ISO 14495-1 C.1.1 for 0xF7
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))


_JPEG = {0xC0: uid.JPEGBaseline8Bit, 0xC1: uid.JPEGExtended12Bit, 0xC3: uid.JPEGLossless, 0xF7: uid.JPEGLSLossless}
_SEGMENTS = 15  # the most of an RLE frame, PS3.5 G.5


def frame_size(stream: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K stream; None for any other stream."""
    if _is_j2k(stream):
        if len(stream) < 24:
            return None
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left
    if (start := _start_of_frame(stream)) is None:
        return None
    rows, columns = struct.unpack(">2H", stream[start + 5 : start + 9])
    return rows, columns


def frame_bits(stream: bytes) -> int | None:
    """Return the bits per sample that a JPEG, JPEG-LS, JPEG 2000 or HTJ2K stream codes; None for any other stream."""
    if _is_j2k(stream):  # Ssiz of the first component, ISO 15444-1 A.5.1
        return (stream[42] & 0x7F) + 1 if len(stream) > 42 else None
    start = _start_of_frame(stream)
    return None if start is None else stream[start + 4]


def syntax_of(stream: bytes) -> UID | None:
    """Return a transfer syntax that decodes this stream, by its own markers; None if they are unknown."""
    if _is_j2k(stream):  # CAP behind SIZ, ISO 15444-15
        after = 4 + struct.unpack(">H", stream[4:6])[0] if len(stream) > 6 else 0
        return uid.HTJ2K if stream[after : after + 2] == b"\xff\x50" else uid.JPEG2000
    if (start := _start_of_frame(stream)) is not None:
        return _JPEG.get(stream[start + 1])
    if len(stream) > 64:
        count, *offsets = struct.unpack("<16I", stream[:64])
        used, rest = offsets[:count], offsets[count:]
        if 1 <= count <= _SEGMENTS and used[0] == 64 and used == sorted(used) and not any(rest):
            return uid.RLELossless
    return None


def lacks_end_marker(stream: bytes) -> bool:
    """Return whether a JPEG stream lacks its end-of-image marker."""
    return stream[:2] == b"\xff\xd8" and not stream[-64:].rstrip(b"\0\xff").endswith(b"\xff\xd9")


def _is_j2k(stream: bytes) -> bool:
    return stream[:4] == b"\xff\x4f\xff\x51"  # SOC, SIZ: ISO 15444-1 A.5.1


def _start_of_frame(stream: bytes) -> int | None:
    """Return the offset of a JPEG stream's first start-of-frame marker, with its size behind it; else None."""
    if stream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(stream):
        if stream[at] != 0xFF:
            return None
        marker = stream[at + 1]
        if marker in _SOF:
            return at
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + struct.unpack(">H", stream[at + 2 : at + 4])[0]
    return None
