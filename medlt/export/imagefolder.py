"""The images of a run as a Hugging Face `imagefolder`: a folder of PNG files and a metadata.csv beside them.

`datasets.load_dataset("imagefolder", data_dir=OUT)` reads it, and so does any tool that joins a table by file name.
Only synthetic images are written, unless real ones are asked for: these are of patients.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from medlt.data.manifest import Manifest, uids_in
from medlt.files import atomic, write_text
from medlt.types import InputError

PROVENANCE = ("split", "view", "synthetic", "weight", "method", "models", "finding", "seed", "tail_parent",
              "head_parent", "label_source", "parents")  # fmt: skip


def export_imagefolder(run: Path, out: Path, real: bool = False) -> None:
    """Write OUT/SPLIT/UID.png and OUT/SPLIT/metadata.csv. Raises InputError where there is no image to write.

    metadata.csv: file_name, one column a finding (1, 0, blank for unknown, or a soft label), then what made the image.
    """
    manifest = Manifest.read(run / "manifest.parquet")
    rows = manifest.rows
    synthetic = rows["synthetic"] if "synthetic" in rows else pd.Series(False, rows.index)
    chosen = manifest if real else manifest.where(synthetic)
    if chosen.rows.empty:
        raise InputError(f"{run}: no synthetic image passed the checks, so there is nothing to export")
    for split, part in chosen.rows.groupby("split"):
        folder = Path(out) / str(split)
        names = {str(uid): f"{uid}{manifest.file(str(uid)).suffix}" for uid in part.index}
        for uid, name in names.items():
            with atomic(folder / name) as temporary:
                shutil.copyfile(manifest.file(uid), temporary)
        write_text(folder / "metadata.csv", _metadata(part, names, manifest.findings).to_csv(index=False))


def _metadata(rows: pd.DataFrame, names: dict[str, str], findings: tuple[str, ...]) -> pd.DataFrame:
    kept = [name for name in PROVENANCE if name in rows and rows[name].notna().any()]
    table = rows[[*findings, *kept]].copy()
    if "parents" in table:
        table["parents"] = [" ".join(uids_in(value)) for value in table["parents"]]
    table.insert(0, "file_name", list(names.values()))
    return table
