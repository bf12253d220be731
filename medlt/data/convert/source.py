"""One input file in memory, of any format: its stored values and the tags that determine their display."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medlt.data.dicom.guard import Unreadable, frame, open_bytes
from medlt.data.images import kind_of, read_picture
from medlt.data.nifti import slice_of

MOST_FRAMES = 10_000
NO_NAME = Path("file")  # failures are reported by code, because a path may hold a name


@dataclass(frozen=True)
class ConversionSource:
    """An input file: `data` holds the tags; for PNG, JPEG and NIfTI only those that the display needs.

    `index` is the number of the frame, counted from 0.
    """

    kind: str
    data: Dataset
    notes: tuple[str, ...]
    pixels: np.ndarray | None = None
    index: int = 0

    def stored(self, reduce: int = 1) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return stored values [H,W] or [H,W,3], and notes on them; decode a DICOM file. Raises Unreadable.

        With `reduce` 2 or 4, JPEG 2000 is decoded at a half or a quarter of its resolution, if that is possible.
        """
        if self.pixels is not None:
            return self.pixels, ()
        values, notes = frame(self.data, NO_NAME, self.index, reduce)
        factor = round(int(self.data.Rows) / values.shape[0])
        return values, notes if factor == 1 else (*notes, f"JPEG 2000 decoded at 1/{factor} of its resolution")

    def frames(self, raw: bytes) -> Iterator[ConversionSource]:
        """Yield the source of each frame, with its own display tags. Raises Unreadable for more than MOST_FRAMES."""
        count = int(self.data.get("NumberOfFrames") or 1)
        if count > MOST_FRAMES:
            raise Unreadable("too_large", f"{count} frames exceed the limit of {MOST_FRAMES}")
        yield self
        for index in range(1, count):
            own = "PerFrameFunctionalGroupsSequence" in self.data
            data, notes = open_bytes(raw, NO_NAME, index) if own else (self.data, self.notes)
            yield replace(self, data=data, notes=notes, index=index)


def open_source(raw: bytes) -> ConversionSource:
    """Return the input file with these bytes. Raises Unreadable with a reason code."""
    kind = kind_of(raw[:2048])
    if not raw:
        raise Unreadable("empty", "an empty file")
    if kind in ("archive", "document"):
        raise Unreadable(kind, f"{kind}: not an image file")
    if kind == "nifti":
        values, notes = slice_of(raw, NO_NAME)
        return ConversionSource(kind, Dataset(), notes, values)
    if kind in ("png", "jpeg"):
        values = read_picture(raw, NO_NAME)
        return ConversionSource(kind, _identity_display(8 * values.dtype.itemsize), (), values)
    data, notes = open_bytes(raw, NO_NAME)
    return ConversionSource(kind, data, notes)


def _identity_display(bits: int) -> Dataset:
    """Return tags that display grey levels of this depth unchanged."""
    data = Dataset()
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = bits
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = (2**bits - 1) / 2, 2**bits - 1, "LINEAR_EXACT"
    return data
