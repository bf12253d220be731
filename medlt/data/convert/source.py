"""One input file in memory: its stored values and the tags that say how to show them, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medlt.data.dicom.guard import Unreadable, open_bytes, stored_values
from medlt.data.images import kind_of, read_picture
from medlt.data.nifti import slice_of

NO_NAME = Path("file")  # errors are told by reason code: a path may hold a name


@dataclass(frozen=True)
class Source:
    """`data` holds the tags; for PNG, JPEG and NIfTI just those that their display needs."""

    kind: str
    data: Dataset
    notes: tuple[str, ...]
    pixels: np.ndarray | None = None

    def stored(self) -> np.ndarray:
        """Stored values [H,W] or [H,W,3]; decodes a DICOM file. Raises Unreadable."""
        return stored_values(self.data, NO_NAME) if self.pixels is None else self.pixels


def open_source(raw: bytes) -> Source:
    """What these bytes are. Raises Unreadable with a reason code."""
    kind = kind_of(raw[:2048])
    if not raw:
        raise Unreadable("empty", "an empty file")
    if kind in ("archive", "document"):
        raise Unreadable(kind, f"an {kind}, which is not opened")
    if kind == "nifti":
        values, notes = slice_of(raw, NO_NAME)
        return Source(kind, Dataset(), notes, values)
    if kind in ("png", "jpeg"):
        values = read_picture(raw, NO_NAME)
        return Source(kind, _as_it_is(8 * values.dtype.itemsize), (), values)
    data, notes = open_bytes(raw, NO_NAME)
    return Source(kind, data, notes)


def _as_it_is(bits: int) -> Dataset:
    """Tags under which grey levels of this depth are shown unchanged."""
    data = Dataset()
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = bits
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = (2**bits - 1) / 2, 2**bits - 1, "LINEAR_EXACT"
    return data
