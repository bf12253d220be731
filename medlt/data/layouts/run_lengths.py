"""Masks as run lengths, as the SIIM-ACR Pneumothorax challenge publishes them.

A code is text of pairs of numbers: pixels skipped since the last run, pixels covered. Pixels are counted down the
columns of a 1024 x 1024 px image, from the left one to the right one (Kaggle 2019, "relative" run-length encoding).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medlt.data.images import image_shape
from medlt.types import InputError

SIDE = 1024


def runs(code: str) -> np.ndarray:
    """Return the first pixel of each run and the one behind its last, int64 [n,2]. Raises ValueError for other text."""
    numbers = np.array(code.split(), np.int64)
    if not numbers.size or numbers.size % 2:
        raise ValueError("a run needs two numbers")
    skipped, covered = numbers.reshape(-1, 2).T
    ends = np.cumsum(skipped + covered)
    if (skipped < 0).any() or (covered < 1).any() or ends[-1] > SIDE**2:
        raise ValueError(f"a run is outside {SIDE} x {SIDE} pixels")
    return np.stack([ends - covered, ends], axis=1)


def decoded(codes: Sequence[str]) -> np.ndarray:
    """Return what several codes of one image cover together, bool [1024,1024] (row, column)."""
    columns = np.zeros(SIDE**2, bool)
    for code in codes:
        for first, behind in runs(code):
            columns[first:behind] = True
    return columns.reshape(SIDE, SIDE).T


def write_mask(codes: Sequence[str], image: Path, path: Path) -> None:
    """Write the mask of an image at the image's size, as 8-bit PNG of 0 and 255; a pixel counts if half is covered.

    Raises InputError for an image that is not square: the mask would not fit it.
    """
    mask = Image.fromarray(decoded(codes).astype(np.uint8) * 255)
    high, wide = image_shape(image) if image.is_file() else (SIDE, SIDE)
    if high != wide:
        raise InputError(f"{image}: has {wide} x {high} pixels, its mask is square; give the images as published")
    if high != SIDE:
        mask = mask.resize((wide, high), Image.Resampling.BOX).point(lambda value: 255 * (value >= 128))
    mask.save(path, "PNG")
