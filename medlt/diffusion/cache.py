"""The latent cache: raw moments of every image on disk, computed once and indexed by uid.

An artifact of the store contains `moments.npy` [N,2C,h,w] and `cache.json` with the uid of each row. Its key names the
codec, the shape of an image, and the bytes of every image file. Rows are appended with a checksum each, and an
interrupted file is continued, so a killed process loses one batch at most. Memory use does not grow with the number of
images: rows are appended to the file and memory-mapped only while they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medlt.diffusion.codec import encode
from medlt.files import digest, digest_tensors, write_json
from medlt.rows import StoredRows
from medlt.store import Artifact, Store
from medlt.training.runtime import Runtime
from medlt.types import Codec, InputError

FORMAT = 1  # raise it if the same images and codec give other rows
DTYPES = {"float16": np.float16, "float32": np.float32}
SUM = 16  # bytes of a row's checksum


class Images(Protocol):
    """A map-style dataset of dicts with at least `uid` and `image` [1,H,W] in [0,1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class LatentCache:
    """A finished cache. `cache[uids]` returns raw moments float32 [len(uids),2C,h,w] in the order of `uids`.

    `contents` is a digest of the codec and the pixels.
    """

    folder: Path
    uids: tuple[str, ...]
    shape: tuple[int, ...]
    contents: str
    _row: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._row.update({uid: row for row, uid in enumerate(self.uids)})

    def __len__(self) -> int:
        return len(self.uids)

    def __getitem__(self, uids: Sequence[str]) -> Tensor:
        if unknown := [uid for uid in uids if uid not in self._row]:
            raise InputError(f"{self.folder} has no latents of {unknown[0]} ({len(unknown)} in all); cache them first")
        mapped = np.load(self.folder / "moments.npy", mmap_mode="r", allow_pickle=False)
        rows = np.array([self._row[uid] for uid in uids], dtype=np.intp)
        return torch.from_numpy(np.asarray(mapped[rows], dtype=np.float32))

    @classmethod
    def of(cls, artifact: Artifact) -> LatentCache:
        """Return the cache in a finished artifact of kind "latents"."""
        metadata = json.loads(artifact.path("cache.json").read_text())
        return cls(artifact.folder, tuple(metadata["uids"]), tuple(metadata["shape"]), artifact.digest)


def _uids(dataset: Images, contents: Mapping[str, str]) -> list[str]:
    """Return the uids of a dataset without reading images: its `uids`, or those in the dicts of its `data`."""
    listed = getattr(dataset, "uids", None)
    uids = [str(uid) for uid in (listed if listed is not None else [row["uid"] for row in dataset.data])]  # type: ignore[attr-defined]
    if len(uids) != len(dataset) or not uids:
        raise InputError(f"{len(uids)} uids for a dataset of {len(dataset)} images; give one uid per image, at least 1")
    if missing := [uid for uid in uids if not contents.get(uid)]:
        raise InputError(f"latents: contents has no digest of uid {missing[0]} ({len(missing)} in all); add it")
    return uids


def _read(dataset: Images, uids: Sequence[str], start: int, stop: int) -> Tensor:
    """Return images start..stop of the dataset [b,1,H,W]. Raises InputError if one has another uid."""
    items = [dataset[i] for i in range(start, stop)]
    for item, uid in zip(items, uids[start:stop], strict=True):
        if str(item["uid"]) != uid:
            raise InputError(f"the dataset returns {item['uid']} at the position of {uid}; list the uids in its order")
    return torch.stack([torch.as_tensor(item["image"], dtype=torch.float32) for item in items])


@dataclass(frozen=True)
class _RowFile:
    """A moments.npy during writing, and a file with a checksum of each finished row."""

    folder: Path
    row: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def array(self) -> Path:
        return self.folder / "moments.npy"

    @property
    def sums(self) -> Path:
        return self.folder / ".moments.sums"

    @property
    def size(self) -> int:
        """The number of bytes of a row."""
        return self.row.itemsize * int(np.prod(self.shape[1:]))

    def begin(self) -> int:
        """Write the header, or keep the intact rows of an interrupted process. Return the number of rows kept."""
        head = _header(self.row, self.shape)
        if not self.sums.exists() or not self.array.exists() or _first(self.array, len(head)) != head:
            self.array.write_bytes(head)
            self.sums.write_bytes(b"")
        done = self._whole(len(head))
        os.truncate(self.array, len(head) + done * self.size)
        os.truncate(self.sums, done * SUM)
        return done

    def _whole(self, head: int) -> int:
        """Return the number of rows, from the first, whose checksum is right."""
        done, sums = 0, self.sums.read_bytes()
        with self.array.open("rb") as handle:
            handle.seek(head)
            while (expected := sums[done * SUM : (done + 1) * SUM]) and _sum(handle.read(self.size)) == expected:
                done += 1
        return done

    def add(self, rows: np.ndarray) -> None:
        """Append rows [b,2C,h,w]."""
        with np.errstate(over="ignore"):
            stored = rows.astype(self.row)
        if (np.isinf(stored) & np.isfinite(rows)).any():
            largest = np.abs(rows[np.isfinite(rows)]).max()
            raise InputError(
                f"latents of this codec reach {largest:g}, beyond {self.row.name}; scale them in the codec"
            )
        parts = [row.tobytes() for row in stored]
        with self.array.open("ab") as array, self.sums.open("ab") as sums:
            array.write(b"".join(parts))
            array.flush()
            sums.write(b"".join(map(_sum, parts)))


def _first(file: Path, size: int) -> bytes:
    with file.open("rb") as handle:
        return handle.read(size)


def _sum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=SUM).digest()


def _header(row: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of an npy file with this dtype and shape."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": row.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def cache_latents(
    codec: Codec, dataset: Images, *, contents: Mapping[str, str], store: Store, runtime: Runtime,
    dtype: str = "float16", batch: int = 16,
) -> LatentCache:  # fmt: skip
    """Return the latent cache of `dataset`: open it, continue it after an interruption, or encode all images.

    contents: uid -> digest of the image file, for every image at least; dtype: float16 (relative error at most 2^-11
    from 6e-5 on, half the disk) or float32. The bytes do not depend on `batch`, threads or interruptions. The progress
    stage is "latents". Raises InputError if an image has another uid than listed, if `contents` lacks one, or if a
    number is too large for `dtype`.
    """
    uids = _uids(dataset, contents)
    first = _read(dataset, uids, 0, 1)
    images = digest([[uid, contents[uid]] for uid in uids])
    key = {"format": FORMAT, "codec": codec.digest, "image": list(first.shape[1:]), "dtype": dtype, "contents": images}

    def build(folder: Path) -> None:
        shape = (len(uids), *encode(codec, first).shape[1:])
        rows = _RowFile(folder, np.dtype(DTYPES[dtype]), shape)
        for start in range(rows.begin(), len(uids), batch):
            stop = min(start + batch, len(uids))
            rows.add(encode(codec, _read(dataset, uids, start, stop)).cpu().numpy())
            runtime.progress("latents", stop, len(uids))
        metadata = {"codec": codec.digest, "uids": uids, "shape": list(shape), "dtype": dtype}
        write_json(folder / "cache.json", metadata)

    with runtime.limited():
        return LatentCache.of(store.make("latents", key, build))


@dataclass(frozen=True)
class Standardiser:
    """Per-channel affine map of latents: `to` gives the split it was measured on mean 0 and sd 1. mean, sd: [C]."""

    mean: Tensor
    sd: Tensor

    def to(self, z: Tensor) -> Tensor:
        """Return (z - mean) / sd, for z [B,C,h,w]."""
        return (z - self.mean[:, None, None]) / self.sd[:, None, None]

    def back(self, z: Tensor) -> Tensor:
        """Return z * sd + mean, the inverse of `to`."""
        return z * self.sd[:, None, None] + self.mean[:, None, None]

    @property
    def digest(self) -> str:
        """Digest of mean and sd."""
        return digest_tensors({"mean": self.mean, "sd": self.sd})


def _chunks(uids: Sequence[str], size: int = 256) -> Iterator[Sequence[str]]:
    return (uids[i : i + size] for i in range(0, len(uids), size))


def channel_statistics(cache: LatentCache, codec: Codec, uids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return mean and sd [C], float32, of the mode latents of `uids`, over images and pixels, in constant memory.

    Sums are float64 and relative to the first chunk's mean, so that a large offset costs no digits. A constant channel
    has sd 1.
    """
    count, first, second = 0, torch.zeros(codec.channels).double(), torch.zeros(codec.channels).double()
    shift: Tensor | None = None
    for part in _chunks(uids):
        z = codec.latents(cache[part]).double().transpose(0, 1).flatten(1)
        shift = z.mean(1) if shift is None else shift
        z = z - shift[:, None]
        count, first, second = count + z.shape[1], first + z.sum(1), second + z.pow(2).sum(1)
    if shift is None:
        raise InputError("uids is empty; give those of the train split to measure latents")
    mean = first / count
    sd = (second / count - mean**2).clamp_min(0).sqrt()
    return (mean + shift).float(), torch.where(sd > 1e-6, sd, torch.ones_like(sd)).float()


@dataclass(frozen=True)
class Latents:
    """Standardised mode latents by uid: `latents(uids)` returns float32 [len(uids),C,h,w]."""

    cache: LatentCache
    codec: Codec
    standardiser: Standardiser

    def __call__(self, uids: Sequence[str]) -> Tensor:
        return self.standardiser.to(self.codec.latents(self.cache[uids]))

    def rows(self, uids: Sequence[str]) -> StoredRows:
        """Return the latents of these uids as rows [N,C,h,w], in memory if they are few, else read on demand."""
        names = [f"{self.contents} {uid}" for uid in uids]
        one = self(list(uids[:1])).shape[1:]
        numbers = np.arange(len(uids), dtype=np.int64)
        stored = StoredRows(lambda at: self([uids[i] for i in at]), names, tuple(one), torch.float32, numbers)
        return stored.loaded()

    @property
    def contents(self) -> str:
        """Digest of the codec, the standardiser and the pixels: equal digests and uids have equal latents."""
        return digest(self.cache.contents, self.codec.digest, self.standardiser.digest)
