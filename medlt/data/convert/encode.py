"""Encodes pixels as the bytes of a file. Equal pixels give equal bytes; the file holds no other data of the source."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping

import numpy as np

SUFFIX = {"png": ".png", "png16": ".png", "jpeg": ".jpg", "nifti": ".nii.gz"}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Return a grayscale PNG of uint8 or uint16 [h,w], with text chunks (PNG 11.3.3) by keyword.

    A text chunk is tEXt, or iTXt for a text that is not Latin-1. Rows are filtered by Up (W3C PNG 9.2) and deflated at
    level 1 by libdeflate, for speed; the format is standard.
    """
    import imagecodecs
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    for keyword, value in (text or {}).items():
        about.add_text(keyword, value)
    rows, columns = pixels.shape
    depth = 8 * pixels.dtype.itemsize
    flat = np.ascontiguousarray(pixels, ">u2" if depth == 16 else np.uint8).view(np.uint8)
    filtered = np.empty((rows, flat.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=filtered[1:, 1:])
    head = struct.pack(">2I5B", columns, rows, depth, 0, 0, 0, 0)
    body = bytes(imagecodecs.deflate_encode(filtered.tobytes(), level=1))
    texts = (_chunk(kind, data) for kind, data, *_ in about.chunks)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", head), *texts, _chunk(b"IDAT", body), _chunk(b"IEND", b"")))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Return a baseline grayscale JPEG of uint8 [h,w]."""
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(pixels, level=quality))


def nifti(
    pixels: np.ndarray, spacing: tuple[float, float] | None, scale: float | None = None, offset: float | None = None
) -> bytes:
    """Return a gzipped NIfTI-1 of [h,w], rows from the top, in RAS as a frontal film is hung.

    The first axis runs along a row to the patient's left (-x), the second down (-z), the third is one voxel thick;
    `spacing` (row, column) in mm, 1 if unknown. scl_slope and scl_inter carry `scale` and `offset`.
    """
    import nibabel

    down, along = spacing or (1.0, 1.0)
    affine = np.array([[-along, 0, 0, 0], [0, 0, 1, 0], [0, -down, 0, 0], [0, 0, 0, 1]], float)
    image = nibabel.Nifti1Image(np.ascontiguousarray(pixels.T[:, :, None]), affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1.0 if scale is None else scale, 0.0 if offset is None else offset)
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def encode(
    pixels: np.ndarray,
    kind: str,
    quality: int,
    spacing: tuple[float, float] | None,
    scale: float | None,
    offset: float | None,
) -> bytes:
    """Return the bytes of a file of this kind: png, png16, jpeg or nifti."""
    if kind == "jpeg":
        return jpeg(pixels, quality)
    if kind == "nifti":
        return nifti(pixels, spacing, scale, offset)
    return png(pixels)
