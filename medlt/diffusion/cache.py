"""The latent cache: raw moments of every image, computed once, on disk, looked up by uid.

An artifact of the store holds `moments.npy` [N,2C,h,w] and `cache.json`, which says whose each row is. Its key names
the codec, the shape of an image, and the bytes of every image's file. Rows are appended as they are computed, each with
a checksum until the artifact has its own, and a broken-off file is continued, so a kill costs one batch. Memory does
not grow with the number of images: rows are written past memory and mapped only while they are read.
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
from medlt.store import Artifact, Store
from medlt.training.runtime import Runtime
from medlt.types import Codec, InputError

FORMAT = 1  # raise it when the same images through the same codec give other rows
DTYPES = {"float16": np.float16, "float32": np.float32}
SUM = 16  # bytes of a row's checksum


class Images(Protocol):
    """A map-style dataset of dicts that hold at least `uid` and `image` [1,H,W] in [0,1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class LatentCache:
    """A finished cache. `cache[uids]` gives raw moments float32 [len(uids),2C,h,w], in the order asked.

    `contents` names the codec and the pixels.
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
            raise InputError(f"{self.folder} has no latents of {unknown[0]} ({len(unknown)} such); cache them first")
        mapped = np.load(self.folder / "moments.npy", mmap_mode="r", allow_pickle=False)
        rows = np.array([self._row[uid] for uid in uids], dtype=np.intp)
        return torch.from_numpy(np.asarray(mapped[rows], dtype=np.float32))

    @classmethod
    def of(cls, artifact: Artifact) -> LatentCache:
        """The cache in a finished artifact of kind "latents"."""
        told = json.loads(artifact.path("cache.json").read_text())
        return cls(artifact.folder, tuple(told["uids"]), tuple(told["shape"]), artifact.digest)


def _uids(dataset: Images, contents: Mapping[str, str]) -> list[str]:
    """The uids a dataset tells without reading images: its `uids`, or the dicts of its `data`."""
    told = getattr(dataset, "uids", None)
    uids = [str(uid) for uid in (told if told is not None else [row["uid"] for row in dataset.data])]  # type: ignore[attr-defined]
    if len(uids) != len(dataset) or not uids:
        raise InputError(
            f"{len(uids)} uids for a dataset of {len(dataset)} images; give one uid an image, at least one"
        )
    if lost := [uid for uid in uids if not contents.get(uid)]:
        raise InputError(f"latents: what the image of uid {lost[0]} holds is not known ({len(lost)} such); name it")
    return uids


def _read(dataset: Images, uids: Sequence[str], start: int, stop: int) -> Tensor:
    """Images start..stop of the dataset [b,1,H,W], each checked to be the one its uid says."""
    items = [dataset[i] for i in range(start, stop)]
    for item, uid in zip(items, uids[start:stop], strict=True):
        if str(item["uid"]) != uid:
            raise InputError(f"the dataset gives {item['uid']} where {uid} was announced; keep the uids in its order")
    return torch.stack([torch.as_tensor(item["image"], dtype=torch.float32) for item in items])


@dataclass(frozen=True)
class _Growing:
    """A moments.npy that is being written, and beside it a checksum of each finished row."""

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
        """Bytes of a row."""
        return self.row.itemsize * int(np.prod(self.shape[1:]))

    def begin(self) -> int:
        """Write the header, or keep what is whole of what a killed process left. Gives the number of rows kept."""
        head = _header(self.row, self.shape)
        if not self.sums.exists() or not self.array.exists() or _first(self.array, len(head)) != head:
            self.array.write_bytes(head)
            self.sums.write_bytes(b"")
        done = self._whole(len(head))
        os.truncate(self.array, len(head) + done * self.size)
        os.truncate(self.sums, done * SUM)
        return done

    def _whole(self, head: int) -> int:
        """Rows, from the first, that have their checksum."""
        done, sums = 0, self.sums.read_bytes()
        with self.array.open("rb") as handle:
            handle.seek(head)
            while (told := sums[done * SUM : (done + 1) * SUM]) and _sum(handle.read(self.size)) == told:
                done += 1
        return done

    def add(self, rows: np.ndarray) -> None:
        """Append rows [b,2C,h,w]."""
        parts = [row.tobytes() for row in rows.astype(self.row)]
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
    """The header of an npy file of rows of this kind, in this shape."""
    held = BytesIO()
    told = {"descr": row.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(held, told)
    return held.getvalue()


def cache_latents(
    codec: Codec, dataset: Images, *, contents: Mapping[str, str], store: Store, runtime: Runtime,
    dtype: str = "float32", batch: int = 16,
) -> LatentCache:  # fmt: skip
    """Encode `dataset`, or open what is there, or continue where a killed process stopped.

    contents: uid -> what names the bytes of the image's file, of every image at least; dtype: float16 or float32. The
    bytes do not depend on `batch`, on threads or on interruptions. Progress is told as "latents". Raises InputError
    for a dataset that does not give the images its uids announce, or whose contents are not named.
    """
    uids = _uids(dataset, contents)
    first = _read(dataset, uids, 0, 1)
    held = digest([[uid, contents[uid]] for uid in uids])
    key = {"format": FORMAT, "codec": codec.digest, "image": list(first.shape[1:]), "dtype": dtype, "contents": held}

    def build(folder: Path) -> None:
        shape = (len(uids), *encode(codec, first).shape[1:])
        growing = _Growing(folder, np.dtype(DTYPES[dtype]), shape)
        for start in range(growing.begin(), len(uids), batch):
            stop = min(start + batch, len(uids))
            growing.add(encode(codec, _read(dataset, uids, start, stop)).cpu().numpy())
            runtime.progress("latents", stop, len(uids))
        about = {"codec": codec.digest, "uids": uids, "shape": list(shape), "dtype": dtype}
        write_json(folder / "cache.json", about)

    with runtime.limited():
        return LatentCache.of(store.make("latents", key, build))


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

    @property
    def digest(self) -> str:
        """Names mean and sd."""
        return digest_tensors({"mean": self.mean, "sd": self.sd})


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

    @property
    def contents(self) -> str:
        """Names the codec, the standardiser and the pixels: equal names and uids have equal latents."""
        return digest(self.cache.contents, self.codec.digest, self.standardiser.digest)
