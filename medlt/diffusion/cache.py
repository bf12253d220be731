"""The latent cache: raw moments of every image, computed once, on disk, looked up by uid.

One folder, named by a digest of the codec, the image size, the uids and the source, holds `moments.npy` [N,2C,h,w] and
`cache.json`. Rows are appended as they are computed and a broken-off file is gone on with, so a kill costs one batch.
Memory does not grow with the number of images: rows are written past memory and mapped only while they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medlt.diffusion.codec import encode
from medlt.files import digest, write_json
from medlt.types import Codec, InputError

DTYPES = {"float16": np.float16, "float32": np.float32}


class Images(Protocol):
    """A map-style dataset of dicts that hold at least `uid` and `image` [1,H,W] in [0,1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class LatentCache:
    """A finished cache folder. `cache[uids]` gives raw moments float32 [len(uids),2C,h,w], in the order asked."""

    folder: Path
    uids: tuple[str, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_row", {uid: row for row, uid in enumerate(self.uids)})

    def __len__(self) -> int:
        return len(self.uids)

    def __getitem__(self, uids: Sequence[str]) -> Tensor:
        known: dict[str, int] = self._row  # type: ignore[attr-defined]
        if unknown := [uid for uid in uids if uid not in known]:
            raise InputError(f"{self.folder} has no latents of {unknown[0]} ({len(unknown)} such); cache them first")
        mapped = np.load(self.folder / "moments.npy", mmap_mode="r", allow_pickle=False)
        rows = np.array([known[uid] for uid in uids], dtype=np.intp)
        return torch.from_numpy(np.asarray(mapped[rows], dtype=np.float32))

    @classmethod
    def open(cls, folder: Path) -> LatentCache:
        """Read a finished cache folder. Raises InputError where there is none."""
        about = folder / "cache.json"
        if not about.is_file():
            raise InputError(
                f"{folder} is no finished latent cache; run the caching again, it goes on where it stopped"
            )
        told = json.loads(about.read_text())
        return cls(Path(folder), tuple(told["uids"]), tuple(told["shape"]))


def _uids(dataset: Images, uids: Sequence[str] | None) -> list[str]:
    """The uids asked for, or those a dataset tells without reading images: its `uids`, or the dicts of its `data`."""
    if uids is None:
        told = getattr(dataset, "uids", None)
        uids = told if told is not None else [row["uid"] for row in dataset.data]  # type: ignore[attr-defined]
    if len(uids) != len(dataset) or not len(uids):
        raise InputError(
            f"{len(uids)} uids for a dataset of {len(dataset)} images; give one uid an image, at least one"
        )
    return [str(uid) for uid in uids]


def _read(dataset: Images, uids: Sequence[str], start: int, stop: int) -> Tensor:
    """Images start..stop of the dataset [b,1,H,W], each checked to be the one its uid says."""
    items = [dataset[i] for i in range(start, stop)]
    for item, uid in zip(items, uids[start:stop], strict=True):
        if str(item["uid"]) != uid:
            raise InputError(f"the dataset gives {item['uid']} where {uid} was announced; keep the uids in its order")
    return torch.stack([torch.as_tensor(item["image"], dtype=torch.float32) for item in items])


def _begin(part: Path, row: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Open or go on with the unfinished array: write its header or cut a torn row. Gives the rows already there."""
    if not part.exists():
        with part.open("wb") as handle:
            told = {"descr": row.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(handle, told)
    with part.open("r+b") as handle:
        np.lib.format.read_magic(handle)
        np.lib.format.read_array_header_1_0(handle)
        header, size = handle.tell(), row.itemsize * int(np.prod(shape[1:]))
        done = (part.stat().st_size - header) // size
        handle.truncate(header + done * size)
    return done


def cache_latents(
    codec: Codec,
    dataset: Images,
    folder: Path,
    *,
    uids: Sequence[str] | None = None,
    batch: int = 16,
    dtype: str = "float32",
    source: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> LatentCache:
    """Encode `dataset` into `folder`/DIGEST, or open what is there, or go on where a killed run stopped.

    The digest names the codec, the image shape, the uids, `dtype` (float16 or float32) and `source`, any text that
    names the images' content (a manifest's digest). The bytes do not depend on `batch`, on threads or on interruptions.
    """
    names = _uids(dataset, uids)
    first = _read(dataset, names, 0, 1)
    key = digest(codec.digest, list(first.shape), names, dtype, source)
    place = Path(folder) / key
    if (place / "cache.json").is_file():
        return LatentCache.open(place)
    place.mkdir(parents=True, exist_ok=True)
    row = np.dtype(DTYPES[dtype])
    shape = (len(names), *encode(codec, first).shape[1:])
    part = place / "moments.part.npy"
    done = _begin(part, row, shape)
    with part.open("ab") as handle:
        for start in range(done, len(names), batch):
            stop = min(start + batch, len(names))
            handle.write(encode(codec, _read(dataset, names, start, stop)).numpy().astype(row).tobytes())
            handle.flush()
            if progress:
                progress("latents", stop, len(names))
    part.replace(place / "moments.npy")
    write_json(place / "cache.json", {"codec": codec.digest, "uids": names, "shape": list(shape), "dtype": dtype})
    return LatentCache.open(place)


@dataclass(frozen=True)
class Standardiser:
    """Per-channel affine map of latents: `to` gives mean 0 and sd 1 on the split it was measured on. mean, sd: [C]."""

    mean: Tensor
    sd: Tensor

    def to(self, z: Tensor) -> Tensor:
        """(z - mean) / sd, for z [B,C,h,w]."""
        return (z - self.mean[:, None, None]) / self.sd[:, None, None]

    def back(self, z: Tensor) -> Tensor:
        """z * sd + mean, the inverse of `to`."""
        return z * self.sd[:, None, None] + self.mean[:, None, None]


def _chunks(uids: Sequence[str], size: int = 256) -> Iterator[Sequence[str]]:
    return (uids[i : i + size] for i in range(0, len(uids), size))


def channel_statistics(cache: LatentCache, codec: Codec, uids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean and sd [C], float32, of the mode latents of `uids`, over images and pixels, in constant memory.

    Sums run in float64 about the first chunk's mean, so that a large offset costs no digits. A constant channel gets
    sd 1.
    """
    count, first, second = 0, torch.zeros(codec.channels).double(), torch.zeros(codec.channels).double()
    shift: Tensor | None = None
    for part in _chunks(uids):
        z = codec.latents(cache[part]).double().transpose(0, 1).flatten(1)
        shift = z.mean(1) if shift is None else shift
        z = z - shift[:, None]
        count, first, second = count + z.shape[1], first + z.sum(1), second + z.pow(2).sum(1)
    if shift is None:
        raise InputError("no uids to measure latents on; give those of the train split")
    mean = first / count
    sd = (second / count - mean**2).clamp_min(0).sqrt()
    return (mean + shift).float(), torch.where(sd > 1e-6, sd, torch.ones_like(sd)).float()


@dataclass(frozen=True)
class Latents:
    """Standardised mode latents by uid: `latents(uids)` gives float32 [len(uids),C,h,w]."""

    cache: LatentCache
    codec: Codec
    standardiser: Standardiser

    def __call__(self, uids: Sequence[str]) -> Tensor:
        return self.standardiser.to(self.codec.latents(self.cache[uids]))
