"""Places in compressed streams that decoders skip: comments, application data, and bytes behind the end."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_SOI, _EOI, _SOS, _COM, _DNL = 0xD8, 0xD9, 0xDA, 0xFE, 0xDC
_NEEDED = frozenset((*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD, 0xF7, 0xF8))
"""Markers of JPEG and JPEG-LS that carry what a decoder needs (ISO 10918-1 B.1.1.3, ISO 14495-1 C.1.1)."""
_J2K = frozenset((0x4F, 0x50, 0x51, 0x52, 0x53, 0x55, 0x57, 0x58, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61, 0x90))
"""Markers of JPEG 2000 and HTJ2K with a length that a decoder may need (ISO 15444-1 A.2, ISO 15444-15 A.2)."""
COMMENT, APPLICATION, UNKNOWN = "a comment segment", "an application segment", "a segment that no decoder needs"
BEHIND = "bytes behind the end of the stream"
BROKEN = "a stream that cannot be followed to its end"
FOREIGN = "a stream of an unknown kind"
_HARMLESS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""Application segments without free text, of these lengths: JFIF without a thumbnail, Adobe's colour transform."""
_LENGTHS = {0xE0: 16, 0xEE: 14}


def hidden(stream: bytes, samples: int, planes: int) -> Iterator[str]:
    """Yield what one frame's stream carries beside its pixels; `samples` per plane, `planes` bytes planes of RLE."""
    if stream[:2] == b"\xff\xd8":
        yield from _jpeg(stream)
    elif stream[:4] == b"\xff\x4f\xff\x51":
        yield from _j2k(stream)
    elif len(stream) > 64 and struct.unpack_from("<I", stream)[0] == planes:
        yield from _rle(stream, samples)
    else:
        yield FOREIGN


def _jpeg(stream: bytes) -> Iterator[str]:
    at, lossless = 2, stream.find(b"\xff\xf7") in range(2, 4096)
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _EOI:
            if stream[at + 2 :].strip(b"\0\xff"):
                yield BEHIND
            return
        length = struct.unpack_from(">H", stream, at + 2)[0]
        body = stream[at + 4 : at + 2 + length]
        harmless = marker in _HARMLESS and length == _LENGTHS[marker] and body.startswith(_HARMLESS[marker])
        if marker == _COM:
            yield COMMENT
        elif 0xE0 <= marker <= 0xEF and not harmless:
            yield APPLICATION
        elif marker not in _NEEDED and marker != _SOS and not harmless:
            yield UNKNOWN
        at += 2 + length
        if marker == _SOS:
            at = _after_scan(stream, at, lossless)
    if stream[at : at + 2] != b"\xff\xd9":
        yield BROKEN
    elif stream[at + 2 :].strip(b"\0\xff"):
        yield BEHIND


def _after_scan(stream: bytes, at: int, jpegls: bool) -> int:
    """Return the offset of the marker behind entropy-coded data: FF followed by neither a stuffed byte nor a restart.

    JPEG stuffs a zero byte behind FF (B.1.1.5), JPEG-LS a zero bit (ISO 14495-1 A.1).
    """
    while (at := stream.find(b"\xff", at)) >= 0 and at + 1 < len(stream):
        following = stream[at + 1]
        stuffed = following < 0x80 if jpegls else following == 0
        if not stuffed and not 0xD0 <= following <= 0xD7 and following != 0xFF:
            return at
        at += 1 if following == 0xFF else 2
    return len(stream)


def _j2k(stream: bytes) -> Iterator[str]:
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == _EOI:
            break
        length = struct.unpack_from(">H", stream, at + 2)[0]
        if marker == 0x64:
            yield COMMENT
        elif marker not in _J2K:
            yield UNKNOWN
        if marker == 0x90:  # SOT: the tile-part's length counts from its marker, 0 is up to the end
            size = struct.unpack_from(">I", stream, at + 6)[0] or len(stream) - 2 - at
            yield from _tile(stream, at + 2 + length, at + size)
            at += size
        else:
            at += 2 + length
    if stream[at : at + 2] != b"\xff\xd9":
        yield BROKEN
    elif stream[at + 2 :].strip(b"\0\xff"):
        yield BEHIND


def _tile(stream: bytes, at: int, end: int) -> Iterator[str]:
    """Yield what the header of a tile-part carries, up to its start of data."""
    while at + 4 <= end and stream[at] == 0xFF and stream[at + 1] != 0x93:
        if stream[at + 1] == 0x64:
            yield COMMENT
        elif stream[at + 1] not in _J2K:
            yield UNKNOWN
        at += 2 + struct.unpack_from(">H", stream, at + 2)[0]


def _rle(stream: bytes, samples: int) -> Iterator[str]:
    """Yield BEHIND for each segment that goes on after its last sample (PS3.5 G.3), and for used header bytes."""
    count, *offsets = struct.unpack_from("<16I", stream)
    if any(offsets[count:]):
        yield UNKNOWN
    ends = [*offsets[1:count], len(stream)]
    for start, end in zip(offsets[:count], ends, strict=True):
        used = _packed(stream, start, end, samples)
        if stream[used:end].strip(b"\0"):
            yield BEHIND


def _packed(stream: bytes, at: int, end: int, samples: int) -> int:
    """Return the offset behind the PackBits runs of so many samples."""
    made = 0
    while at < end and made < samples:
        control = stream[at]
        if control < 128:
            made, at = made + control + 1, at + control + 2
        else:
            made, at = made + (257 - control) * (control != 128), at + 1 + (control != 128)
    return at
