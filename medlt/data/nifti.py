"""Reads NIfTI files: a film, or one slice of a volume, upright, with the file's scaling applied."""

from __future__ import annotations

import warnings
import zlib

import numpy as np

from medlt.data.dicom.bombs import LIMIT_INFLATED_BYTES
from medlt.data.dicom.guard import Unreadable
from medlt.remote import AnyFile

_MAGICS = {344: (b"n+1\0", b"ni1\0"), 4: (b"n+2\0", b"ni2\0")}


def is_nifti(head: bytes) -> bool:
    """Return whether these first bytes, plain or gzipped, are those of a NIfTI-1 or NIfTI-2 file."""
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 348)
        except zlib.error:
            return False
    return any(head[at : at + 4] in magics for at, magics in _MAGICS.items())


def slice_of(raw: bytes, path: AnyFile, index: int | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the values, float64 [H,W], of slice `index` (default: the middle one), and notes.

    scl_slope and scl_inter are applied. The volume is rotated to the closest canonical axes (right, anterior,
    superior). The slice is taken across the axis with the fewest voxels; rows run from superior, or anterior in an
    axial slice, downward; columns from the patient's right to left, or front to back in a sagittal one: as films are
    hung. Raises Unreadable if the bytes are not a NIfTI file, have time points or colours, hold values that are not
    finite, or if `index` is out of range.
    """
    values = _volume(_inflated(raw, path), path)
    axis = int(np.argmin(values.shape))
    count = values.shape[axis]
    at = count // 2 if index is None else index
    if not 0 <= at < count:
        raise Unreadable("corrupt", f"{path}: slice {at} is outside 0 to {count - 1}; choose another slice")
    upright = np.take(values, at, axis)[::-1, ::-1].T
    if not np.isfinite(upright).all():
        raise Unreadable("corrupt", f"{path}: holds values that are not finite; export the volume again")
    return np.ascontiguousarray(upright), () if count == 1 else (f"slice {at + 1} of {count}",)


def _volume(raw: bytes, path: AnyFile) -> np.ndarray:
    """Return float64 [x,y,z] in the closest canonical orientation, or unchanged if the file has none."""
    import nibabel

    kind = nibabel.Nifti2Image if raw[4:7] in (b"n+2", b"ni2") else nibabel.Nifti1Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = kind.from_bytes(raw)
            shape = _three(tuple(int(n) for n in image.shape), path)
            values = np.asarray(image.dataobj, np.float64).reshape(shape)
            turn = nibabel.io_orientation(image.affine)
            return np.asarray(values if np.isnan(turn).any() else nibabel.apply_orientation(values, turn))
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Unreadable("corrupt", f"{path}: damaged NIfTI ({reason}); restore the file from its source") from None


def _three(shape: tuple[int, ...], path: AnyFile) -> tuple[int, ...]:
    """Return the shape as three axes. Raises Unreadable on time points, an empty axis, or a size above the limit."""
    if len(shape) < 2 or max(shape[3:], default=1) > 1 or min(shape) < 1:
        raise Unreadable("not_an_image", f"{path}: a NIfTI of shape {shape}; only films and volumes are read")
    if int(np.prod(np.array(shape, dtype=object))) * 8 > LIMIT_INFLATED_BYTES:
        raise Unreadable("too_large", f"{path}: a NIfTI of shape {shape}; leave the file out")
    return (*shape, 1)[:3]


def _inflated(raw: bytes, path: AnyFile) -> bytes:
    """Return the bytes inside gzip, inflated up to the limit."""
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        inflater = zlib.decompressobj(wbits=31)
        data = inflater.decompress(raw, LIMIT_INFLATED_BYTES)
    except zlib.error:
        raise Unreadable("corrupt", f"{path}: damaged gzip; restore the file from its source") from None
    if inflater.unconsumed_tail:
        raise Unreadable("too_large", f"{path}: more than {LIMIT_INFLATED_BYTES >> 20} MiB when inflated; leave it out")
    return data
