"""The cells of stored pixels (PS3.5 8.1.1): alignment by High Bit, unused bits, sign, and packed 12-bit cells."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

PACKED = "12-bit packed cells"
WIDE = "16-bit cells, declared as 12 bits"


def bits_below(data: Dataset, precision: int | None = None) -> int:
    """Return the number of bits of a decoded sample that lie below the stored ones (High Bit, PS3.5 8.1.1).

    `precision` is the number of bits per sample that a compressed stream states; None for uncompressed pixels and RLE,
    which hold whole cells. A stream of fewer bits than the cell up to High Bit is already aligned to bit 0.
    """
    stored, high = int(data.get("BitsStored") or 0), data.get("HighBit")
    if high is None or (precision is not None and precision <= int(high)):
        return 0
    return max(0, int(high) + 1 - stored)


def cleared(raw: np.ndarray, data: Dataset, shift: int) -> np.ndarray:
    """Return the values without the bits outside BitsStored, where old files keep overlays; `shift` bits lie below.

    Makes a copy only if there are such bits.
    """
    if not np.issubdtype(raw.dtype, np.integer):
        return raw
    allocated, stored = int(data.BitsAllocated), int(data.BitsStored)
    unused = allocated - stored
    limits = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if data.PixelRepresentation else (0, 2**stored - 1)
    if unused <= 0 or (not shift and raw.size and limits[0] <= raw.min() and raw.max() <= limits[1]):
        return raw
    return np.asarray((raw << (unused - shift)) >> unused)


def native(values: np.ndarray) -> np.ndarray:
    """Return the same values in this machine's byte order."""
    return np.asarray(values, values.dtype.newbyteorder("="))


def sample_count(data: Dataset) -> int:
    """Return the number of samples of all frames that the header declares."""
    sides = [int(data.get(k) or 1) for k in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")]
    return int(np.prod(np.array(sides, dtype=object)))


def plain_length(data: Dataset) -> int:
    """Return the declared number of bytes of uncompressed pixels, without the padding byte (PS3.5 8.1.1)."""
    return (sample_count(data) * int(data.get("BitsAllocated") or 8) + 7) // 8


def has_excess(data: Dataset) -> bool:
    """Return whether uncompressed pixels are longer than declared, plus one padding byte."""
    if "PixelData" not in data or data["PixelData"].is_undefined_length:
        return False
    return len(data.PixelData) > plain_length(data) + 1


def widen_packed(data: Dataset) -> tuple[str, ...]:
    """Replace uncompressed 12-bit cells (ACR-NEMA, two samples in three bytes) by 16-bit cells, in place.

    Returns a note, or nothing if the cells have another size or the pixels another length. The length decides whether
    they are packed: some writers declare 12 bits and write 16.
    """
    if data.get("BitsAllocated") != 12 or "PixelData" not in data or data["PixelData"].is_undefined_length:
        return ()
    count, raw = sample_count(data), data.PixelData
    needed = (count * 12 + 7) // 8
    if len(raw) == 2 * count:
        data.BitsAllocated = 16
        return (WIDE,)
    if len(raw) - needed not in (0, 1):
        return ()
    big = data.original_encoding[1] is False
    values = unpacked(np.frombuffer(raw, np.uint8)[: needed + needed % 2], count, big)
    data.BitsAllocated = 16
    data.add_new("PixelData", "OW", values.astype(">u2" if big else "<u2").tobytes())
    return (PACKED,)


def unpacked(raw: np.ndarray, count: int, big: bool) -> np.ndarray:
    """Return `count` 12-bit samples, uint16, of uint8 [n]: lowest bits first, in 16-bit words of the file's order."""
    if big:
        raw = np.pad(raw, (0, raw.size % 2)).reshape(-1, 2)[:, ::-1].ravel()
    triples = np.pad(raw, (0, -raw.size % 3)).reshape(-1, 3).astype(np.uint16)
    first = triples[:, 0] | (triples[:, 1] & 15) << 8
    second = triples[:, 1] >> 4 | triples[:, 2] << 4
    return np.stack([first, second], axis=1).ravel()[:count]
