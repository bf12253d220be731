"""The rows of a run that are exported, and copies of their image files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import torch

from medlt.config import PromptConfig, StableConfig, load_config
from medlt.data.columns import is_synthetic
from medlt.data.manifest import Manifest
from medlt.diffusion.prompts import Prompts
from medlt.files import atomic, write_bytes
from medlt.folders import MOST_FILES, subfolders
from medlt.remote import RemoteFile
from medlt.types import InputError
from medlt.writer import metadata

ROWS = 1000
"""Images in a shard."""


def exported(run: Path, real: bool) -> Manifest:
    """Return the synthetic rows of a run, and with `real` all rows.

    Raises InputError for a folder without manifest.parquet, and where no synthetic image passed the checks.
    """
    file = run / "manifest.parquet"
    if not file.is_file():
        raise InputError(f"{run.absolute()}: has no manifest.parquet, so it made no images; run `medlt augment` first")
    manifest = Manifest.read(file)
    synthetic = is_synthetic(manifest.rows)
    if not synthetic.any():
        raise InputError(f"{run.absolute()}: no synthetic image passed the checks, so there is nothing to export")
    return manifest if real else manifest.where(synthetic)


def copy_images(manifest: Manifest, part: pd.DataFrame, folder: Path, limit: int = MOST_FILES) -> dict[str, str]:
    """Copy the files of these rows to FOLDER/UID.SUFFIX; returns uid -> name. Raises InputError for a missing file.

    `limit` files and more are in subfolders, which are part of their names (`medlt.folders`).
    """
    inside = subfolders([str(uid) for uid in part.index], limit)
    names = {uid: f"{place}{uid}{manifest.file(uid).suffix}" for uid, place in inside.items()}
    for uid, name in names.items():
        source = manifest.file(uid)
        if not source.is_file():
            raise InputError(f"{source.absolute()}: no such file (uid {uid}); restore it, and export again")
        if isinstance(source, RemoteFile):
            write_bytes(folder / name, source.read_bytes())
            continue
        with atomic(folder / name) as temporary:
            shutil.copyfile(source, temporary)
    return names


def image_bytes(manifest: Manifest, uid: str) -> bytes:
    """Return the bytes of a row's file. Raises InputError for a missing file."""
    try:
        return manifest.file(uid).read_bytes()
    except OSError:
        place = manifest.file(uid).absolute()
        raise InputError(f"{place}: no such file (uid {uid}); restore it, and export again") from None


def shard_count(images: int, shard_size: int) -> int:
    """Return the number of shards of so many images. Raises InputError for a size below 1."""
    if shard_size < 1:
        raise InputError(f"--shard-size {shard_size}: a shard holds 1 image or more")
    return -(-images // shard_size)


def whole_seeds(rows: pd.DataFrame) -> pd.Series:
    """Return integer seeds, -1 for a real image: a blank would make readers of CSV take seeds for floats, and round."""
    return rows["seed"].astype("Int64").fillna(-1).astype("int64")


def origin(run: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Return what made each row, as in images/metadata.csv (`medlt.writer.metadata`), without file names and labels.

    The columns of parents are left out as `gives_parents` says.
    """
    names = {str(uid): "" for uid in rows.index}
    return metadata(rows, (), names, parents=gives_parents(run)).drop(columns=["file_name", "uid"])


def gives_parents(run: Path) -> bool:
    """Return whether the uids of parents may leave: they are uids of real images, so not from a private run."""
    return load_config(run / "config.yaml").privacy is None


def prompts_of(run: Path, manifest: Manifest) -> list[str]:
    """Return a text prompt for each row, by the words of the run's config. It names findings and the view alone.

    A run without Stable Diffusion has the default words (docs/explanation/prompts.md).
    """
    config = load_config(run / "config.yaml")
    settings = config.denoiser.prompts if isinstance(config.denoiser, StableConfig) else PromptConfig()
    words = Prompts(manifest.findings, **settings.model_dump(exclude_none=True))
    about = [{"view": view} for view in manifest.rows["view"]]
    return words(torch.from_numpy(manifest.labels()), about)
