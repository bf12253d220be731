"""The images of a run as WebDataset shards: tar files whose members UID.png and UID.json follow one another."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medlt.data.manifest import Manifest
from medlt.export.images import ROWS, exported, image_bytes, origin, shard_count
from medlt.export.provenance import write_provenance
from medlt.files import atomic


def export_webdataset(run: Path, out: Path, real: bool = False, shard_size: int = ROWS) -> None:
    """Write OUT/SPLIT-000000.tar, ..., OUT/provenance.json and the run's cards.

    UID.json: {"label": {finding: 1, 0, null for unknown, or a soft label}, and what made the image}. A dot in a uid is
    written as an underscore, because readers take what is before the first dot for the key. A shard holds up to
    `shard_size` images of one split. Raises InputError where there is no image to write.
    """
    manifest = exported(run, real)
    write_provenance(run, out)
    about = origin(run, manifest.rows)
    for split, part in manifest.rows.groupby("split"):
        for number in range(shard_count(len(part), shard_size)):
            shard = part.iloc[number * shard_size : (number + 1) * shard_size]
            with atomic(out / f"{split}-{number:06d}.tar") as temporary, tarfile.open(temporary, "w") as tar:
                _write(tar, manifest, shard, about.loc[shard.index])


def _write(tar: tarfile.TarFile, manifest: Manifest, rows: pd.DataFrame, about: pd.DataFrame) -> None:
    for uid in rows.index:
        key = str(uid).replace(".", "_")
        _add(tar, f"{key}{manifest.file(str(uid)).suffix}", image_bytes(manifest, str(uid)))
        label = {name: _plain(rows.at[uid, name]) for name in manifest.findings}
        text = {"uid": str(uid), "label": label, **{name: _plain(about.at[uid, name]) for name in about}}
        _add(tar, f"{key}.json", json.dumps(text).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member; equal members give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, None where there is none."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
