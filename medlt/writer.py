"""Synthetic images onto the disk: whole or absent, each with its provenance, shard by shard so that a kill loses one.

A shard is a run of plan rows that hold whole slots: an artifact of the store below RUN/stages, found by the contents of
its rows and by the name of all that makes and checks images. It holds the kept images, their rows, and what the checks
say of all; each file has a checksum. So rows of another plan, another denoiser or a flipped byte never pass as its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from medlt.data.convert.encode import png
from medlt.data.dicom.synthetic import Origin, synthetic_bytes
from medlt.data.manifest import uids_in
from medlt.files import digest, read_table, write_bytes, write_table, write_text
from medlt.store import Artifact, Store
from medlt.types import Batch, CheckResult, InputError

FORMAT = 1
KIND = "shards"
WRITERS = 4
COLUMNS = ("check", "uid", "value", "limit", "passed", "reason")


def to_uint8(images: Tensor) -> np.ndarray:
    """[B,1,H,W] in [0,1] -> uint8 [B,H,W], rounded half up. Raises ValueError on a value that is not finite."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError("an image holds values that are not finite; it must not be written")
    return (images[:, 0].clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()


def digest_rows(rows: pd.DataFrame) -> str:
    """16 hex digits that name plan rows: their uids, in order, and every value, exactly, but not the kind of a column.

    Equal for rows in memory and the same rows read back from a parquet file.
    """
    values = {str(name): [_plain(value) for value in column] for name, column in rows.items()}
    return digest([str(uid) for uid in rows.index], values)


def _plain(value: Any) -> Any:
    """A number, a text, a list of texts, or None where there is nothing."""
    if isinstance(value, list | tuple | np.ndarray):
        return uids_in(value)
    return None if pd.isna(value) else value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class DatasetWriter:
    """The shards of one plan below `folder`/stages/shards, and the published images in `folder`/images.

    `models` names all that decides what an image of a given plan row is, and whether it is kept: models, checks,
    settings. A shard belongs to the plan once `has`, `write` or `shard` was called for its rows, in that order.
    """

    folder: Path
    models: str
    _shards: dict[str, Artifact | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _home: dict[str, Artifact] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def store(self) -> Store:
        """Where the shards lie."""
        return Store(self.folder / "stages")

    def _key(self, rows: pd.DataFrame) -> dict[str, Any]:
        return {"format": FORMAT, "rows": digest_rows(rows), "models": self.models}

    def has(self, rows: pd.DataFrame) -> bool:
        """Whether the shard of these rows is there, whole; a damaged one is named and set aside."""
        key = self._key(rows)
        return self._belongs(key["rows"], self.store.find(KIND, key))

    def _belongs(self, named: str, shard: Artifact | None) -> bool:
        """Count a shard, or its place in the order, as one of the plan's; whether it is there."""
        self._shards[named] = shard
        if shard is not None:
            self._home.update({path.stem: shard for path in shard.path("images").glob("*.png")})
        return shard is not None

    def write(self, rows: pd.DataFrame, batch: Batch, findings: Sequence[CheckResult], kept: Sequence[str]) -> None:
        """Write the shard of plan rows `rows`: the images of `kept`, their rows and labels, the findings on all.

        batch: the images of just these rows. Raises what the first image that fails raises; there is no shard then.
        """
        self.shard(rows, lambda: (batch, findings, kept))

    def shard(self, rows: pd.DataFrame, make: Callable[[], tuple[Batch, Sequence[CheckResult], Sequence[str]]]) -> None:
        """Find the shard of these rows, or have it made under a lock; `make` as the arguments of `write`."""

        def build(folder: Path) -> None:
            batch, findings, kept = make()
            if list(batch.rows.index) != list(rows.index):
                raise ValueError("a batch of other rows than the plan's; give the images of just these rows")
            _fill(folder, batch, findings, kept)

        key = self._key(rows)
        self._belongs(key["rows"], self.store.make(KIND, key, build))

    def _opened(self) -> list[Path]:
        """Folders of the plan's shards, in its order."""
        return [self._sound(shard) for shard in self._shards.values() if shard is not None]

    def _sound(self, shard: Artifact) -> Path:
        """The folder of a shard. Raises InputError if it was damaged meanwhile."""
        if self.store.open(KIND, shard.folder) is None:
            raise InputError(f"{shard.folder}: damaged while it was used; run again, it is made again")
        return shard.folder

    def kept(self) -> pd.DataFrame:
        """All kept rows with their labels, indexed by uid, in plan order; integers as the plan has them."""
        return _joined(folder / "kept.parquet" for folder in self._opened())

    def results(self) -> pd.DataFrame:
        """Return the results of all checks, one row a check and image."""
        table = _joined(folder / "checks.parquet" for folder in self._opened())
        return table.reset_index(drop=True).reindex(columns=list(COLUMNS))

    def _files(self, uids: Iterable[str]) -> list[Path]:
        """Files of these kept images, their shards verified."""
        homes = [(uid, self._home[uid]) for uid in uids]
        folders = {name: self._sound(shard) for name, shard in {shard.digest: shard for _, shard in homes}.items()}
        return [folders[shard.digest] / "images" / f"{uid}.png" for uid, shard in homes]

    def read(self, uids: Sequence[str]) -> Tensor:
        """Kept images of the plan's shards, uint8 [n,1,H,W]. Raises KeyError for a uid that is none of them."""
        return torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in self._files(uids)])

    def publish(self, uids: Sequence[str]) -> None:
        """Copy these kept images to images/, where users look; the shards stay for a resume.

        An image that lies there under such a name with other bytes is replaced; others are moved to superseded/images/.
        """
        place = self.folder / "images"
        for file in self._files(uids):
            target, data = place / file.name, file.read_bytes()
            if not target.exists() or target.read_bytes() != data:
                write_bytes(target, data)
        self._set_aside({f"{uid}.png" for uid in uids})

    def _set_aside(self, known: set[str]) -> None:
        """Move images that are not of the plan from images/ to superseded/images/, and say so."""
        place, aside = self.folder / "images", self.folder / "superseded" / "images"
        strange = sorted(path for path in place.glob("*.png") if path.name not in known)
        for path in strange:
            aside.mkdir(parents=True, exist_ok=True)
            path.replace(aside / path.name)
        if strange:
            logging.getLogger(__name__).warning(
                "%s: %d images were not of this run's plan, such as %s; they were moved to %s",
                place, len(strange), strange[0].name, aside,
            )  # fmt: skip


def _fill(folder: Path, batch: Batch, findings: Sequence[CheckResult], kept: Sequence[str]) -> None:
    """The files of a shard: images, several at a time, then the tables."""
    chosen = np.flatnonzero(batch.rows.index.isin(set(kept)))
    uids, pixels = [str(uid) for uid in batch.rows.index[chosen]], to_uint8(batch.images[chosen])
    for left in (folder / "images").glob("*.png"):  # of an interrupted call, which may have kept others
        left.unlink()
    with ThreadPoolExecutor(WRITERS, "writer") as pool:  # encoding and fsync both let go of the interpreter
        list(pool.map(lambda uid, image: write_bytes(folder / "images" / f"{uid}.png", png(image)), uids, pixels))
    write_table(folder / "checks.parquet", pd.DataFrame([asdict(f) for f in findings], columns=COLUMNS))
    rows = batch.rows.iloc[chosen].join(batch.labels.iloc[chosen])
    write_table(folder / "kept.parquet", rows.assign(path=[f"images/{uid}.png" for uid in uids]))


def _joined(files: Iterable[Path]) -> pd.DataFrame:
    """Tables one below the other, those without a row left out."""
    tables = [table for file in files if len(table := read_table(file))]
    return pd.concat(tables) if tables else pd.DataFrame()


def write_metadata(folder: Path, rows: pd.DataFrame, findings: Sequence[str]) -> None:
    """images/metadata.csv, which makes `folder`/images a Hugging Face `imagefolder`: file_name, then the labels."""
    table = rows[list(findings)].assign(file_name=[f"{uid}.png" for uid in rows.index])
    write_text(folder / "images" / "metadata.csv", table[["file_name", *findings]].to_csv(index=False))


def write_dicom(folder: Path, rows: pd.DataFrame, findings: Sequence[str]) -> None:
    """dicom/<uid>.dcm beside each published PNG, the same pixels; `rows` hold `path`, `method` and `models`.

    A file that is there and is the same is left as it is.
    """
    for uid, row in rows.iterrows():
        target = folder / "dicom" / f"{uid}.dcm"
        labels = {name: float(row[name]) for name in findings}
        origin = Origin(str(uid), row["method"], row["models"], labels)
        data = synthetic_bytes(np.asarray(Image.open(folder / row["path"])), origin)
        if not target.exists() or target.read_bytes() != data:
            write_bytes(target, data)
