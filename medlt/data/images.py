"""Reads DICOM, PNG, JPEG and NIfTI files as one float image. The content decides the format, not the file name.

A file is at a path or at a URL (`medlt.remote`); it is read once.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from medlt.data.dicom import Unreadable
from medlt.data.dicom.guard import open_bytes, read_bytes
from medlt.data.dicom.read import radiograph_in
from medlt.data.nifti import is_nifti, slice_of
from medlt.remote import AnyFile, RemoteFile, as_file

_COLOUR = ("RGB", "RGBA", "P", "PA", "LA", "CMYK", "YCbCr", "1")
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


def read_image(path: str | AnyFile) -> np.ndarray:
    """Return the image in a file, float32 [H,W] in [0,1], upright and not mirrored.

    `read_dicom` reads DICOM. PNG and JPEG: 8-bit values / 255, 16-bit / 65535, colour to BT.601 luminance, the EXIF
    orientation applied. NIfTI: the middle slice, scaled from its lowest to its highest value. Raises Unreadable (an
    InputError) in one line if the file is none of these.
    """
    return as_unit(read_levels(path))


def as_unit(levels: np.ndarray) -> np.ndarray:
    """Return the result of `read_levels` as float32 in [0,1]."""
    return np.divide(levels, 255, dtype=np.float32) if levels.dtype == np.uint8 else levels


def read_levels(path: str | AnyFile) -> np.ndarray:
    """Return the image as `read_image` does, but an 8-bit PNG or JPEG as its stored grey levels, uint8 [H,W].

    They take a quarter of the memory, and shrinking them a third of the time.
    """
    file = as_file(path)
    return levels_in(read_bytes(file), file)


def levels_in(raw: bytes, path: AnyFile) -> np.ndarray:
    """Do as `read_levels` for a file in memory; `path` is its name in errors."""
    kind = kind_of(raw[:2048])
    if kind == "nifti":
        values, _ = slice_of(raw, path)
        low, high = values.min(), values.max()
        return np.asarray((values - low) / ((high - low) or 1), np.float32)
    if kind in ("png", "jpeg"):
        values = read_picture(raw, path)
        return values if values.dtype == np.uint8 else np.divide(values, 65535, dtype=np.float32)
    return radiograph_in(raw, path).pixels


def image_shape(path: str | AnyFile) -> tuple[int, int]:
    """Return (H,W) of the image that `read_image` reads; PNG, JPEG and DICOM pixels are not decoded. Raises Unreadable.

    A header that cannot be understood is left to `read_image`, which says what is wrong.
    """
    file = as_file(path)
    raw = read_bytes(file) if isinstance(file, RemoteFile) else b""
    kind = kind_of(raw[:2048]) if isinstance(file, RemoteFile) else sniff(file)
    if kind == "dicom":
        data, _ = open_bytes(raw or read_bytes(file), file)
        return int(data.Rows), int(data.Columns)
    if kind in ("png", "jpeg"):
        try:
            with Image.open(
                io.BytesIO(raw) if isinstance(file, RemoteFile) else file, formats=("PNG", "JPEG")
            ) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                return image.size if turned else image.size[::-1]
        except (OSError, SyntaxError, ValueError):
            pass
    high, wide = levels_in(raw or read_bytes(file), file).shape
    return high, wide


def sniff(path: Path) -> str:
    """Return the kind of a file, see `kind_of`. Raises Unreadable if it cannot be opened."""
    try:
        with path.open("rb") as handle:
            return kind_of(handle.read(2048))
    except OSError as error:
        reason = error.strerror or "cannot be opened"
        raise Unreadable("missing", f"{path.absolute()}: {reason}; check the path and its permissions") from None


def kind_of(head: bytes) -> str:
    """Return 'png', 'jpeg', 'nifti', 'archive', 'document' or 'dicom' from a file's first 2,048 bytes or more.

    Any other content counts as DICOM without a preamble.
    """
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if is_nifti(head):
        return "nifti"
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return "archive"
    return "document" if head.startswith(b"%PDF") else "dicom"


def read_picture(raw: bytes, path: AnyFile) -> np.ndarray:
    """Return the stored grey levels of a PNG or JPEG, uint8 or uint16 [H,W]. Raises Unreadable, naming `path`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(raw), formats=("PNG", "JPEG"))
            values = np.asarray(_gray(ImageOps.exif_transpose(image)))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable("too_large", f"{path}: too many pixels to be a radiograph; remove it or shrink it") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreadable("corrupt", f"{path}: damaged image ({reason}); restore the file from its source") from None
    return values if values.dtype == np.uint8 else np.clip(values, 0, 65535).astype(np.uint16)


def _gray(image: Image.Image) -> Image.Image:
    """Return an 8- or 16-bit gray image. Raises ValueError on a pixel format without a fixed range."""
    if image.mode in _COLOUR:
        return image.convert("RGB").convert("L")
    if image.mode not in ("L", "I;16", "I;16B", "I;16L", "I"):
        raise ValueError(f"pixel format {image.mode}")
    return image
