"""The images of a run with the label lists of two published benchmarks, for code that was written for them.

cxr-lt: the tables of the CXR-LT challenge of 2023 (train.csv, development.csv, test.csv), several findings an image.
longtailcxr: the lists of LongTailCXR (Holste et al. 2022, arXiv 2208.13365), as of NIH-CXR-LT, one finding an image.
`medlt manifest cxr-lt` reads the first back. The column synthetic is 1 for a synthetic image.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medlt.data.manifest import Manifest
from medlt.export.images import copy_images, exported
from medlt.export.provenance import write_provenance
from medlt.files import write_text
from medlt.types import InputError

TABLES = {"train": "train.csv", "val": "development.csv", "test": "test.csv"}
LISTS = {
    "train": "nih-cxr-lt_single-label_train.csv",
    "val": "nih-cxr-lt_single-label_balanced-val.csv",
    "test": "nih-cxr-lt_single-label_test.csv",
}


def export_cxr_lt(run: Path, out: Path, real: bool = False) -> None:
    """Write OUT/cxr-lt-2023/train.csv (with `real` also development.csv and test.csv) and OUT/images/.

    Columns: dicom_id, subject_id, study_id, ViewPosition, fpath, one a finding (1, 0, blank, soft labels), synthetic.
    Raises InputError where there is no image to write.
    """
    manifest = exported(run, real)
    write_provenance(run, out)
    names = copy_images(manifest, manifest.rows, out / "images")
    for split, part in manifest.rows.groupby("split"):
        identity = pd.DataFrame(
            {
                "dicom_id": part.index.astype(str),
                "subject_id": part["patient_id"].to_numpy(),
                "study_id": part.index.astype(str),
                "ViewPosition": part["view"].to_numpy() if "view" in part else "",
                "fpath": [f"images/{names[str(uid)]}" for uid in part.index],
            },
            part.index,
        )
        table = pd.concat([identity, part[list(manifest.findings)]], axis=1).assign(synthetic=_synthetic(part))
        write_text(out / "cxr-lt-2023" / TABLES[str(split)], table.to_csv(index=False))


def export_longtailcxr(run: Path, out: Path, real: bool = False) -> None:
    """Write OUT/labels/nih-cxr-lt_single-label_train.csv (with `real` all three lists) and OUT/images/.

    Columns: id, one a finding with a single 1 in each row, subject_id, synthetic. A synthetic image has the finding it
    was made for; real images with no or several findings are left out, as the benchmark does.
    Raises InputError where there is no image to write.
    """
    manifest = exported(run, real)
    write_provenance(run, out)
    single = _single(manifest)
    if single.empty:
        raise InputError(f"{run.absolute()}: no image has a single finding; use format cxr-lt")
    names = copy_images(manifest, manifest.rows.loc[single.index], out / "images")
    for split, part in manifest.rows.loc[single.index].groupby("split"):
        table = single.loc[part.index].astype(int)
        table.insert(0, "id", [names[str(uid)] for uid in part.index])
        table = table.assign(subject_id=part["patient_id"], synthetic=_synthetic(part))
        write_text(out / "labels" / LISTS[str(split)], table.to_csv(index=False))


def _single(manifest: Manifest) -> pd.DataFrame:
    """Return rows of one finding each, bool [N,K]: of what a synthetic image was made for, or of a real one's label."""
    rows, findings = manifest.rows, list(manifest.findings)
    positive = rows[findings] >= 0.5
    for uid in rows.index[_synthetic(rows) == 1]:
        positive.loc[uid] = [name == rows.at[uid, "finding"] for name in findings]
    return positive[positive.sum(axis=1) == 1]


def _synthetic(rows: pd.DataFrame) -> pd.Series:
    return rows["synthetic"].astype(int) if "synthetic" in rows else pd.Series(0, rows.index)
