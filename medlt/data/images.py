"""Any radiograph file as one float image: DICOM, PNG or JPEG, told apart by what the file holds, not by its name."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medlt.data.dicom import Unreadable, read_dicom

_COLOUR = ("RGB", "RGBA", "P", "PA", "LA", "CMYK", "YCbCr", "1")


def read_image(path: Path) -> np.ndarray:
    """float32 [H,W] in [0,1], upright, never mirrored by us.

    DICOM goes through `read_dicom`. PNG and JPEG: 8-bit values / 255, 16-bit / 65535, colour to BT.601 luminance,
    the EXIF orientation applied. Raises Unreadable (an InputError) in one line if the file is none of these.
    """
    path = Path(path)
    kind = sniff(path)
    return read_dicom(path).pixels if kind == "dicom" else _read_picture(path)


def sniff(path: Path) -> str:
    """'dicom', 'png' or 'jpeg'; a file that is none is taken for DICOM without its preamble. Raises Unreadable."""
    try:
        with Path(path).open("rb") as handle:
            head = handle.read(132)
    except OSError as error:
        reason = error.strerror or "cannot be opened"
        raise Unreadable("missing", f"{path}: {reason}; check the path and its permissions") from None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "jpeg" if head.startswith(b"\xff\xd8\xff") else "dicom"


def _read_picture(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "JPEG"))
            values = np.asarray(_gray(ImageOps.exif_transpose(image)))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable("too_large", f"{path}: too many pixels to be a radiograph; remove it or shrink it") from None
    except (OSError, SyntaxError, ValueError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreadable("corrupt", f"{path}: damaged image ({told}); restore the file from its source") from None
    limit = np.float32(255 if values.dtype == np.uint8 else 65535)
    return np.asarray(np.clip(values / limit, 0, 1), np.float32)


def _gray(image: Image.Image) -> Image.Image:
    """8- or 16-bit gray; raises ValueError on a pixel format without a fixed range."""
    if image.mode in _COLOUR:
        return image.convert("RGB").convert("L")
    if image.mode not in ("L", "I;16", "I;16B", "I;16L", "I"):
        raise ValueError(f"pixel format {image.mode}")
    return image
