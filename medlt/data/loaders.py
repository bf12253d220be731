"""MONAI transforms, data sets and loaders of a Manifest. Images are upright (rows, columns) and never flipped.

`RadiographReader` reads the files, because MONAI's own readers return (width, height).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, MapTransform
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from medlt.data.manifest import Manifest
from medlt.data.reader import LoadRadiographd
from medlt.data.squares import square
from medlt.data.validate import scan
from medlt.remote import AnyFile, RemoteFile
from medlt.rng import torch_generator
from medlt.training.batches import ThreadLoader
from medlt.types import InputError

__all__ = [
    "Radiographs",
    "ResizeToSquared",
    "dataset",
    "images",
    "loader",
    "scan",
    "transforms",
]


class ResizeToSquared(MapTransform):  # type: ignore[misc]
    """Dict transform: images [1,H,W] in [0,1] to plain tensors float32 [1,size,size], by `square`."""

    def __init__(self, size: int, keys: Sequence[str] = ("image",)) -> None:
        super().__init__(keys)
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        squares = {key: square(np.asarray(data[key])[0], self.size)[None] for key in self.keys}
        return {**data, **{key: torch.from_numpy(pixels) for key, pixels in squares.items()}}


def transforms(size: int) -> Compose:
    """Return the dict transform of an item whose "image" is a path: to float32 [1,size,size] in [0,1].

    Its first part is MONAI's LoadImaged with `RadiographReader`. Raises RuntimeError, as MONAI does for any error of a
    transform, with the InputError of a damaged file as its cause.
    """
    return Compose([LoadRadiographd("image"), ResizeToSquared(size)])


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


def dataset(manifest: Manifest, size: int, cache_rate: float = 0.0) -> Radiographs:
    """Return a data set of square images.

    It decodes an image at every access, but for the share `cache_rate` in [0,1] of its first images, which MONAI's
    CacheDataset decodes now and keeps in memory. `medlt.data.pixels.PixelCache.dataset` keeps them on disk instead, for
    all runs. Raises InputError if a file is missing, or if one to be kept is damaged.
    """
    items = [_item(uid, manifest.file(uid)) for uid in manifest.rows.index]
    if not cache_rate:
        return Radiographs(manifest, Dataset(items, transforms(size)))
    with _input_errors():
        return Radiographs(manifest, CacheDataset(items, transforms(size), cache_rate=cache_rate, progress=False))


def loader(
    source: TorchDataset[dict[str, Any]], *, batch_size: int, shuffle: bool = False, seed: int = 0, workers: int = 0
) -> ThreadLoader:
    """Return batches {"uid": list, "image": [B,1,S,S], "label": [B,K], "weight": [B]}; only `seed` decides the order.

    A thread makes the next batch ahead, by MONAI's ThreadDataLoader. Images are not augmented; in training, pass each
    batch through `medlt.classify.augment.augment`.
    """
    order = torch_generator("loader", seed)
    return ThreadLoader(source, batch_size=batch_size, shuffle=shuffle, generator=order, num_workers=workers)


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


def _item(uid: str, file: AnyFile) -> dict[str, Any]:
    """Return the input of the transform. Raises InputError if the file is missing; a URL is checked when it is read."""
    if isinstance(file, RemoteFile):
        return {"uid": uid, "image": file}
    try:
        file.stat()
    except OSError as error:
        place = file.absolute()
        raise InputError(f"{place}: {error.strerror} (uid {uid}); check the manifest's root and path") from None
    return {"uid": uid, "image": str(file)}
