"""One DICOM file: its attributes, its pixel cells, its streams, what lies behind them, and text in the image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medlt.data.deidentify import Detector
from medlt.data.deidentify.pixels import seen
from medlt.data.dicom import encapsulation, guard
from medlt.data.dicom.cells import plain_length
from medlt.data.verify.codestreams import hidden
from medlt.data.verify.header import header

BITS = "bits beside the stored ones"
MORE = "more pixel data than the header declares"
FRAMES = "frames behind the first, which nothing examines"
FLOATS = "pixels of floating-point numbers, which nothing examines"
TEXT = "lines that look like text in the image"
_FILE = Path("file")


def dicom_file(raw: bytes, detector: Detector) -> Iterator[str]:
    """Yield what a DICOM file still holds. Never raises: what cannot be read is reported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = BytesIO(raw)
            data = pydicom.dcmread(stream, force=True)
            yield from header(data)
            if stream.tell() < len(raw) or "DataSetTrailingPadding" in data:
                yield "bytes behind the data set"
            if "FloatPixelData" in data or "DoubleFloatPixelData" in data:
                yield FLOATS
            if "PixelData" in data:
                yield from _cells(data)
                yield from _picture(raw, detector)
    except Exception as error:  # hostile bytes may raise any exception, and its text may quote them
        yield f"bytes that cannot be read as the header says ({type(error).__name__})"


def _picture(raw: bytes, detector: Detector) -> Iterator[str]:
    """Yield bits and text that only the decoded image shows."""
    data, _ = guard.open_bytes(raw, _FILE)
    values, notes = guard.frame(data, _FILE)
    if guard.BITS_DROPPED in notes:
        yield BITS
    if boxes := seen(values, data, detector):
        yield f"{len(boxes)} {TEXT}"


def _cells(data: Dataset) -> Iterator[str]:
    if int(data.get("NumberOfFrames") or 1) != 1:
        yield FRAMES
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from _compressed(data)
    else:
        yield from _native(data)


def _native(data: Dataset) -> Iterator[str]:
    """Yield excess bytes, and bits outside those from High Bit down to the lowest stored one (PS3.5 8.1.1)."""
    value, length = bytes(data.PixelData), plain_length(data)
    if len(value) > length + length % 2 or value[length:].strip(b"\0"):
        yield MORE
    if data.BitsAllocated not in (8, 16, 32):
        return
    order = ">" if data.original_encoding[1] is False else "<"
    cells = np.frombuffer(value[:length], f"{order}u{data.BitsAllocated // 8}")
    high, stored = int(data.HighBit), int(data.BitsStored)
    used = (1 << stored) - 1 << max(0, high + 1 - stored)
    outside = cells & ~np.array(used, cells.dtype)
    if data.PixelRepresentation:  # the sign may be extended into the bits above
        sign = np.where(cells >> high & 1, np.array(-1 << (high + 1) & (1 << data.BitsAllocated) - 1, cells.dtype), 0)
        outside = np.where(outside == sign, 0, outside)
    if outside.any():
        yield BITS


def _compressed(data: Dataset) -> Iterator[str]:
    """Yield what the items hold beside the pixels: a table that is no table, and segments and bytes in the stream."""
    table, *streams = encapsulation.fragments(data.PixelData)
    if len(table) not in (0, 4) or table.strip(b"\0"):
        yield "an offset table with other offsets than that of one frame"
    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if name in data:
            yield f"an {name}"
    if int(data.HighBit) + 1 != int(data.BitsStored):
        yield BITS
    frame = b"".join(streams)
    bytes_a_sample = max(1, int(data.BitsAllocated) // 8) * int(data.get("SamplesPerPixel") or 1)
    yield from hidden(frame, int(data.Rows) * int(data.Columns), bytes_a_sample)
