"""MONAI transforms, data sets and loaders over a Manifest. Images stay upright (rows, columns) and are never flipped.

MONAI's own readers hand back (width, height); files are read by `read_image` instead.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import Compose, MapTransform
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from medlt import chance
from medlt.data.images import read_image
from medlt.data.manifest import Manifest
from medlt.data.validate import scan
from medlt.types import InputError

__all__ = [
    "Radiographs",
    "ReadSquared",
    "dataset",
    "images",
    "loader",
    "scan",
    "square",
    "transforms",
]


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """float32 [H,W] to [size,size]: centred on a square of the image's minimum, then area-averaged down.

    An image smaller than `size` is enlarged bilinearly. Aspect ratio and orientation are kept.
    """
    high, wide = pixels.shape
    side = max(high, wide)
    top, left = (side - high) // 2, (side - wide) // 2
    padded = np.pad(pixels, ((top, side - high - top), (left, side - wide - left)), constant_values=pixels.min())
    if side == size:
        return np.asarray(padded, np.float32)
    way = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    resized = cv2.resize(padded.astype(np.float32), (size, size), interpolation=way)
    return np.asarray(np.clip(resized, 0, 1), np.float32)


class ReadSquared(MapTransform):  # type: ignore[misc]
    """`path` -> `image`: float32 [1,size,size] in [0,1]. Raises Unreadable on a damaged file."""

    def __init__(self, size: int, keys: Sequence[str] = ("path",), output: str = "image") -> None:
        super().__init__(keys)
        self.size = size
        self.output = output

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        pixels = square(read_image(Path(data[self.keys[0]])), self.size)
        return {**data, self.output: torch.from_numpy(pixels)[None]}


def transforms(size: int) -> Compose:
    """Dict transform: {"uid", "path"} gains "image", float32 [1,size,size] in [0,1]."""
    return Compose([ReadSquared(size)])


@contextmanager
def _users_mistakes() -> Iterator[None]:
    """MONAI turns every error of a transform into RuntimeError; give an InputError inside back as itself."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        raise cause or error from None


class Source(Protocol):
    """Dicts that hold `image` [1,S,S] in [0,1], by the number of the row."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Radiographs(TorchDataset[dict[str, Any]]):
    """{"uid", "image" [1,S,S], "label" float32 [K] with NaN, "weight" float32} a row, in the manifest's order.

    Labels come from the manifest, never from a cache: a corrected label is seen at once.
    """

    def __init__(self, manifest: Manifest, source: Source) -> None:
        self.uids = tuple(manifest.rows.index)
        self.source = source
        self.labels = torch.from_numpy(manifest.labels())
        weight = manifest.rows.get("weight")
        values = np.ones(len(self.uids)) if weight is None else weight.fillna(1.0).to_numpy(np.float64)
        self.weights = torch.from_numpy(values.astype(np.float32))

    def __len__(self) -> int:
        return len(self.uids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with _users_mistakes():
            image = torch.as_tensor(self.source[index]["image"])
        return {
            "uid": self.uids[index],
            "image": image,
            "label": self.labels[index],
            "weight": self.weights[index],
        }


def dataset(manifest: Manifest, size: int) -> Radiographs:
    """A data set of square images, each read and decoded whenever it is asked for: for few images.

    `medlt.data.pixels.PixelCache.dataset` is the same for many. Raises InputError if a file is missing.
    """
    items = [_item(uid, str(manifest.file(uid))) for uid in manifest.rows.index]
    return Radiographs(manifest, Dataset(items, transforms(size)))


def loader(
    source: TorchDataset[dict[str, Any]], *, batch: int, shuffle: bool = False, seed: int = 0, workers: int = 0
) -> DataLoader[dict[str, Any]]:
    """Batches {"uid": list, "image": [B,1,S,S], "label": [B,K], "weight": [B]}; the order depends on `seed` only.

    Images are as prepared; to train, pass each batch's through `medlt.classify.augment.augment`.
    """
    order = chance.generator("loader", seed)
    return DataLoader(source, batch_size=batch, shuffle=shuffle, generator=order, num_workers=workers)


def images(
    manifest: Manifest, size: int, uids: Sequence[str] | None = None, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """All images at once, [N,1,size,size] in the order of `uids`: uint8 (rounded x 255) or a float type in [0,1].

    Each is read and decoded here; `medlt.data.pixels.PixelCache.images` decodes an image once for all runs.
    """
    chosen = manifest if uids is None else Manifest(manifest.rows.loc[list(uids)], manifest.findings, manifest.root)
    source = dataset(chosen, size)
    held = torch.empty((len(source), 1, size, size), dtype=dtype)
    for i in range(len(source)):
        image = source[i]["image"]
        held[i] = (image * 255).round().to(dtype) if dtype == torch.uint8 else image.to(dtype)
    return held


def _item(uid: str, path: str) -> dict[str, Any]:
    """What a transform sees. Raises InputError if the file is missing."""
    try:
        os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror} (uid {uid}); check the manifest's root and path") from None
    return {"uid": uid, "path": path}
