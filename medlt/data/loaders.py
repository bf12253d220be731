"""MONAI transforms, data sets and loaders of a Manifest. Images are upright (rows, columns) and never flipped.

`read_image` reads the files, because MONAI's readers return (width, height).
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

from medlt.data.images import read_image
from medlt.data.manifest import Manifest
from medlt.data.validate import scan
from medlt.rng import torch_generator
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
    """Return float32 [size,size] from [H,W]: pad to a square with the image's minimum, then average areas down.

    An image smaller than `size` is enlarged bilinearly. Aspect ratio and orientation are kept.
    """
    high, wide = pixels.shape
    side = max(high, wide)
    top, left = (side - high) // 2, (side - wide) // 2
    padded = np.pad(pixels, ((top, side - high - top), (left, side - wide - left)), constant_values=pixels.min())
    if side == size:
        return np.asarray(padded, np.float32)
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    resized = cv2.resize(padded.astype(np.float32), (size, size), interpolation=interpolation)
    return np.asarray(np.clip(resized, 0, 1), np.float32)


class ReadSquared(MapTransform):  # type: ignore[misc]
    """Transform that adds `image`, float32 [1,size,size] in [0,1], from `path`. Raises Unreadable on a damaged file."""

    def __init__(self, size: int, keys: Sequence[str] = ("path",), output: str = "image") -> None:
        super().__init__(keys)
        self.size = size
        self.output = output

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        pixels = square(read_image(Path(data[self.keys[0]])), self.size)
        return {**data, self.output: torch.from_numpy(pixels)[None]}


def transforms(size: int) -> Compose:
    """Return the dict transform that adds "image", float32 [1,size,size] in [0,1], to {"uid", "path"}."""
    return Compose([ReadSquared(size)])


@contextmanager
def _input_errors() -> Iterator[None]:
    """Raise the InputError inside a RuntimeError: MONAI wraps every error of a transform in one."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        raise cause or error from None


class ImageSource(Protocol):
    """A sequence of dicts with `image` [1,S,S] in [0,1], by row number."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Radiographs(TorchDataset[dict[str, Any]]):
    """A data set of {"uid", "image" [1,S,S], "label" float32 [K] with NaN, "weight" float32}, in the manifest's order.

    Labels come from the manifest and not from a cache, so a corrected label takes effect at once.
    """

    def __init__(self, manifest: Manifest, source: ImageSource) -> None:
        self.uids = tuple(manifest.rows.index)
        self.source = source
        self.labels = torch.from_numpy(manifest.labels())
        weight = manifest.rows.get("weight")
        values = np.ones(len(self.uids)) if weight is None else weight.fillna(1.0).to_numpy(np.float64)
        self.weights = torch.from_numpy(values.astype(np.float32))

    def __len__(self) -> int:
        return len(self.uids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with _input_errors():
            image = torch.as_tensor(self.source[index]["image"])
        return {
            "uid": self.uids[index],
            "image": image,
            "label": self.labels[index],
            "weight": self.weights[index],
        }


def dataset(manifest: Manifest, size: int) -> Radiographs:
    """Return a data set of square images that decodes an image at every access, for few images.

    For many images use `medlt.data.pixels.PixelCache.dataset`. Raises InputError if a file is missing.
    """
    items = [_item(uid, str(manifest.file(uid))) for uid in manifest.rows.index]
    return Radiographs(manifest, Dataset(items, transforms(size)))


def loader(
    source: TorchDataset[dict[str, Any]], *, batch_size: int, shuffle: bool = False, seed: int = 0, workers: int = 0
) -> DataLoader[dict[str, Any]]:
    """Return batches {"uid": list, "image": [B,1,S,S], "label": [B,K], "weight": [B]}; only `seed` decides the order.

    Images are not augmented; in training, pass each batch through `medlt.classify.augment.augment`.
    """
    order = torch_generator("loader", seed)
    return DataLoader(source, batch_size=batch_size, shuffle=shuffle, generator=order, num_workers=workers)


def images(
    manifest: Manifest, size: int, uids: Sequence[str] | None = None, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """Return all images, [N,1,size,size] in the order of `uids`: uint8 (rounded x 255) or a float type in [0,1].

    Every call decodes the files; `medlt.data.pixels.PixelCache.images` decodes an image once for all runs.
    """
    chosen = manifest if uids is None else Manifest(manifest.rows.loc[list(uids)], manifest.findings, manifest.root)
    source = dataset(chosen, size)
    stacked = torch.empty((len(source), 1, size, size), dtype=dtype)
    for i in range(len(source)):
        image = source[i]["image"]
        stacked[i] = (image * 255).round().to(dtype) if dtype == torch.uint8 else image.to(dtype)
    return stacked


def _item(uid: str, path: str) -> dict[str, Any]:
    """Return the input of the transform. Raises InputError if the file is missing."""
    try:
        os.stat(path)
    except OSError as error:
        place = os.path.abspath(path)
        raise InputError(f"{place}: {error.strerror} (uid {uid}); check the manifest's root and path") from None
    return {"uid": uid, "path": path}
