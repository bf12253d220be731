"""Synthetic images onto the disk: whole or absent, each with its provenance, shard by shard so that a kill loses one.

A shard is a run of plan rows that hold whole slots. Its images are written first, its table last; a shard with a table
is finished. Equal rows give equal bytes, so a shard made twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from medlt.data.convert.encode import png
from medlt.data.dicom.synthetic import Origin, write_synthetic
from medlt.files import write_bytes, write_table, write_text
from medlt.types import Batch, Finding

WRITERS = 4
COLUMNS = ("check", "uid", "value", "limit", "passed", "reason")


def to_uint8(images: Tensor) -> np.ndarray:
    """[B,1,H,W] in [0,1] -> uint8 [B,H,W], rounded half up. Raises ValueError on a value that is not finite."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError("an image holds values that are not finite; it must not be written")
    return (images[:, 0].clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()


@dataclass(frozen=True)
class DatasetWriter:
    """Shards below `folder`/stages/shards, and the published images in `folder`/images."""

    folder: Path

    def shard(self, name: str, kind: str) -> Path:
        """The table of a shard: kind 'kept' (rows and labels of the images written) or 'findings'."""
        return self.folder / "stages" / "shards" / f"{name}.{kind}.parquet"

    def _staged(self, uid: str) -> Path:
        return self.folder / "stages" / "shards" / "images" / f"{uid}.png"

    def _put(self, uid: str, pixels: np.ndarray) -> None:
        write_bytes(self._staged(uid), png(pixels))

    def has(self, name: str) -> bool:
        """Whether this shard is finished."""
        return self.shard(name, "kept").exists()

    def write(self, name: str, batch: Batch, findings: Sequence[Finding], kept: Sequence[str]) -> None:
        """Write the images of `kept`, several at a time, then the findings on all, then the rows of the kept.

        Raises what the first image that fails raises; the tables are then not written.
        """
        chosen = np.flatnonzero(batch.rows.index.isin(set(kept)))
        pixels = to_uint8(batch.images[chosen])
        with ThreadPoolExecutor(WRITERS, "writer") as pool:  # encoding and fsync both let go of the interpreter
            list(pool.map(self._put, batch.rows.index[chosen], pixels))
        write_table(self.shard(name, "findings"), pd.DataFrame([asdict(f) for f in findings], columns=COLUMNS))
        rows = batch.rows.iloc[chosen].join(batch.labels.iloc[chosen])
        write_table(self.shard(name, "kept"), rows.assign(path=[f"images/{uid}.png" for uid in rows.index]))

    def read(self, uids: Sequence[str]) -> Tensor:
        """Kept images of finished shards, uint8 [n,1,H,W]."""
        return torch.stack([torch.from_numpy(np.array(Image.open(self._staged(uid))))[None] for uid in uids])

    def publish(self, uids: Sequence[str]) -> None:
        """Copy these kept images to images/, where users look; the shards stay for a resume."""
        for uid in uids:
            target = self.folder / "images" / f"{uid}.png"
            if not target.exists():
                write_bytes(target, self._staged(uid).read_bytes())

    def _gather(self, kind: str) -> pd.DataFrame:
        files = sorted((self.folder / "stages" / "shards").glob(f"*.{kind}.parquet"))
        tables = [table for file in files if len(table := pd.read_parquet(file))]
        return pd.concat(tables) if tables else pd.DataFrame()

    def kept(self) -> pd.DataFrame:
        """All kept rows with their labels, indexed by uid, in plan order."""
        return self._gather("kept")

    def findings(self) -> pd.DataFrame:
        """All findings of all checks, one row a check and image."""
        return self._gather("findings").reset_index(drop=True).reindex(columns=list(COLUMNS))


def write_metadata(folder: Path, rows: pd.DataFrame, findings: Sequence[str]) -> None:
    """images/metadata.csv, which makes `folder`/images a Hugging Face `imagefolder`: file_name, then the labels."""
    table = rows[list(findings)].assign(file_name=[f"{uid}.png" for uid in rows.index])
    write_text(folder / "images" / "metadata.csv", table[["file_name", *findings]].to_csv(index=False))


def write_dicom(folder: Path, rows: pd.DataFrame, findings: Sequence[str]) -> None:
    """dicom/<uid>.dcm beside each published PNG, the same pixels; `rows` hold `path`, `method` and `models`."""
    for uid, row in rows.iterrows():
        target = folder / "dicom" / f"{uid}.dcm"
        if not target.exists():
            labels = {name: float(row[name]) for name in findings}
            origin = Origin(str(uid), row["method"], row["models"], labels)
            write_synthetic(target, np.asarray(Image.open(folder / row["path"])), origin)
