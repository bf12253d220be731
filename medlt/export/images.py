"""The rows of a run that are exported, and copies of their image files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from medlt.data.manifest import Manifest, uids_in
from medlt.files import atomic
from medlt.types import InputError

PROVENANCE = ("split", "view", "synthetic", "weight", "method", "models", "finding", "seed", "tail_parent",
              "head_parent", "label_source", "parents")  # fmt: skip
"""Columns of the manifest that say what an image is and what made it."""


def exported(run: Path, real: bool) -> Manifest:
    """Return the synthetic rows of a run, and with `real` all rows.

    Raises InputError for a folder without manifest.parquet, and where no synthetic image passed the checks.
    """
    file = run / "manifest.parquet"
    if not file.is_file():
        raise InputError(f"{run}: has no manifest.parquet, so it made no images; run `medlt augment` first")
    manifest = Manifest.read(file)
    rows = manifest.rows
    synthetic = rows["synthetic"].astype(bool) if "synthetic" in rows else pd.Series(False, rows.index)
    if not synthetic.any():
        raise InputError(f"{run}: no synthetic image passed the checks, so there is nothing to export")
    return manifest if real else manifest.where(synthetic)


def copy_images(manifest: Manifest, part: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Copy the files of these rows to FOLDER/UID.SUFFIX; returns uid -> name. Raises InputError for a missing file."""
    names = {str(uid): f"{uid}{manifest.file(str(uid)).suffix}" for uid in part.index}
    for uid, name in names.items():
        source = manifest.file(uid)
        if not source.is_file():
            raise InputError(f"{source.absolute()}: no such file (uid {uid}); restore it, and export again")
        with atomic(folder / name) as temporary:
            shutil.copyfile(source, temporary)
    return names


def origin(rows: pd.DataFrame, run: str) -> pd.DataFrame:
    """Return what made each row: the columns of PROVENANCE that the rows have, and the id of the run."""
    table = rows[[name for name in PROVENANCE if name in rows and rows[name].notna().any()]].copy()
    if "parents" in table:
        table["parents"] = [" ".join(uids_in(value)) for value in table["parents"]]
    synthetic = rows["synthetic"].astype(bool) if "synthetic" in rows else pd.Series(False, rows.index)
    return table.assign(run=synthetic.map({True: run, False: ""})) if run else table
