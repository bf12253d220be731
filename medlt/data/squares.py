"""Shrinks an image to the 8-bit squares of the pixel cache, and reads them from its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from medlt.rows import StoredRows

Place = tuple[Path, int]
"""Folder of a shard, and row in it."""


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return [size,size] from [H,W]: pad to a square with the image's minimum, then average areas down.

    Float pixels are in [0,1] and give float32; uint8 pixels give uint8, rounded. An image smaller than `size` is
    enlarged bilinearly. Aspect ratio and orientation are kept.
    """
    high, wide = pixels.shape
    side = max(high, wide)
    top, left = (side - high) // 2, (side - wide) // 2
    values = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32, copy=False)
    edges = (top, side - high - top, left, side - wide - left)
    padded = cv2.copyMakeBorder(values, *edges, cv2.BORDER_CONSTANT, value=float(values.min()))
    if side == size:
        return np.asarray(padded)
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    resized = cv2.resize(padded, (size, size), interpolation=interpolation)
    return np.asarray(resized if resized.dtype == np.uint8 else np.clip(resized, 0, 1))


def eight_bit(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the square of an image in 8 bit, uint8 [size,size]; pixels as for `square`."""
    made = square(pixels, size)
    return made if made.dtype == np.uint8 else np.rint(made * 255).astype(np.uint8)


@dataclass(frozen=True)
class Shards:
    """Reads squares, by number, uint8 [n,1,size,size]. Number i is row `row[i]` of `folders[shard[i]]`.

    A shard is open only while it is read: a large collection has more shards than a process may open files.
    """

    folders: Sequence[Path]
    shard: np.ndarray
    row: np.ndarray
    size: int

    def __call__(self, numbers: np.ndarray) -> Tensor:
        squares = np.empty((len(numbers), 1, self.size, self.size), np.uint8)
        order = np.argsort(self.shard[numbers], kind="stable")
        starts = np.flatnonzero(np.diff(self.shard[numbers][order], prepend=-1))
        for part in np.split(order, starts[1:]):
            if len(part):
                folder = self.folders[self.shard[numbers[part[0]]]]
                stored: Any = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
                squares[part, 0] = stored[self.row[numbers[part]]]
        return torch.from_numpy(squares)


def stored_rows(places: Sequence[Place], names: Sequence[str], size: int) -> StoredRows:
    """Return the squares at these places, one for each, as rows [N,1,size,size]; names: a digest of each."""
    number: dict[Path, int] = {}
    shard = np.array([number.setdefault(folder, len(number)) for folder, _ in places], np.int32)
    row = np.array([row for _, row in places], np.int32)
    reader = Shards(tuple(number), shard, row, size)
    return StoredRows(reader, tuple(names), (1, size, size), torch.uint8, np.arange(len(places), dtype=np.int64))


@dataclass(frozen=True)
class SquareItems:
    """Image source of a data set: item i is row i, `image` float32 [1,size,size] in [0,1]."""

    rows: StoredRows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        return {"image": self.rows[np.array([index])][0].float() / 255}
