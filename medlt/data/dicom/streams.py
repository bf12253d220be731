"""Reads the size of a compressed frame from its own header, before decoding."""

from __future__ import annotations

import struct

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # ISO 10918-1 B.2.2, ISO 14495-1 C.1.1 for 0xF7
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))


def frame_size(stream: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K stream; None for any other stream."""
    if stream[:4] == b"\xff\x4f\xff\x51":  # SOC, SIZ: ISO 15444-1 A.5.1
        if len(stream) < 24:
            return None
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left
    return _jpeg_size(stream) if stream[:2] == b"\xff\xd8" else None


def lacks_end_marker(stream: bytes) -> bool:
    """Return whether a JPEG stream lacks its end-of-image marker."""
    return stream[:2] == b"\xff\xd8" and not stream[-64:].rstrip(b"\0\xff").endswith(b"\xff\xd9")


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of the first start-of-frame marker."""
    at = 2
    while at + 9 <= len(stream):
        if stream[at] != 0xFF:
            return None
        marker = stream[at + 1]
        if marker in _SOF:
            rows, columns = struct.unpack(">2H", stream[at + 5 : at + 9])
            return rows, columns
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + struct.unpack(">H", stream[at + 2 : at + 4])[0]
    return None
