"""The images of a run with the label lists of two published benchmarks, for code that was written for them.

cxr-lt: the tables of the CXR-LT challenge of 2023 (train.csv, development.csv, test.csv), several findings an image.
longtailcxr: the lists of LongTailCXR (Holste et al. 2022, arXiv 2208.13365), one finding an image. Its data sets read
`<name>_single-label_<split>.csv`, join the column `id` (NIH) or `path` (MIMIC) to the image folder, and take the
largest of the columns of all 20 or 19 findings. Findings that the run does not have are 0.
`medlt manifest cxr-lt` reads the first back. The column synthetic is 1 for a synthetic image.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from medlt.csv_text import as_csv
from medlt.data.layouts import mimic_cxr_lt, nih_cxr_lt
from medlt.data.layouts.reading import known_findings
from medlt.data.manifest import Manifest
from medlt.export.images import copy_images, exported, whole_seeds
from medlt.export.provenance import write_provenance
from medlt.files import write_text
from medlt.types import InputError

logger = logging.getLogger(__name__)

TABLES = {"train": "train.csv", "val": "development.csv", "test": "test.csv"}
PARTS = {"train": "train", "val": "balanced-val", "test": "test"}
"""Split -> its name in LongTailCXR, whose code also reads balanced-test, a part of test."""
BALANCED = "balanced_test"
BENCHMARKS = {"nih-cxr-lt": nih_cxr_lt.FINDINGS, "mimic-lt": mimic_cxr_lt.FINDINGS}
"""Name of the lists -> their findings."""


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
        write_text(out / "cxr-lt-2023" / TABLES[str(split)], as_csv(table))


def export_longtailcxr(run: Path, out: Path, real: bool = False, labels: str = "hard") -> None:
    """Write OUT/labels/NAME_single-label_train.csv (with `real` all lists) and OUT/images/.

    NAME: nih-cxr-lt or mimic-lt, whose findings fit those of the run best. Columns: id (below OUT/images), path (below
    OUT), one a finding as the benchmark spells it, subject_id, synthetic, seed. Hard labels have one 1: a synthetic
    image has the finding it was made for. Soft labels of synthetic images are divided by their sum. Real images with
    no or several findings are left out, as the benchmark does. Raises InputError where there is no image to write.
    """
    manifest = exported(run, real)
    write_provenance(run, out)
    single = _single(manifest)
    if single.empty:
        raise InputError(f"{run.absolute()}: no image has a single finding; use format cxr-lt")
    values = _softened(manifest, single) if labels == "soft" else single.astype(int)
    name, values = _published(values)
    rows = manifest.rows.loc[values.index]
    names = copy_images(manifest, rows, out / "images")
    balanced = rows[BALANCED].eq(True) if BALANCED in rows else pd.Series(False, rows.index)
    about = pd.DataFrame({"subject_id": rows["patient_id"], "synthetic": _synthetic(rows)})
    if "seed" in rows:
        about["seed"] = whole_seeds(rows)
    parts = {PARTS[str(split)]: part.index for split, part in rows.groupby("split")}
    parts |= {"balanced-test": rows.index[balanced]} if balanced.any() else {}
    for part, uids in parts.items():
        table = values.loc[uids].join(about)
        table.insert(0, "id", [names[str(uid)] for uid in uids])
        table.insert(1, "path", "images/" + table["id"])
        write_text(out / "labels" / f"{name}_single-label_{part}.csv", as_csv(table))


def _softened(manifest: Manifest, single: pd.DataFrame) -> pd.DataFrame:
    """Return labels that sum to 1: soft ones of synthetic images, without the unknown, and single ones of real images.

    An image without any label above 0 keeps the finding it was made for.
    """
    soft = manifest.rows.loc[single.index, list(manifest.findings)].fillna(0.0)
    total = soft.sum(axis=1)
    use = (_synthetic(manifest.rows.loc[single.index]) == 1) & (total > 0)
    return single.astype(float).where(~use, soft.div(total.where(total > 0, 1.0), axis=0))


def _published(values: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the name of the benchmark with most of the findings, and labels with exactly its columns.

    Its code would read an image of any other finding as the first class: these images are left out, and counted. A
    collection without any of its findings keeps its own columns.
    """
    fits = {name: known_findings(values.columns, findings) for name, findings in BENCHMARKS.items()}
    name = max(fits, key=lambda one: len(fits[one]))
    if not fits[name]:
        return name, values
    table = values.rename(columns=fits[name]).reindex(columns=list(BENCHMARKS[name]), fill_value=0)
    known = table[table.sum(axis=1) > 0]
    if lost := len(table) - len(known):
        logger.warning("%d image(s) of findings that %s does not have are left out", lost, name)
    soft = any(kind == "float64" for kind in map(str, known.dtypes))
    return name, known.div(known.sum(axis=1), axis=0) if soft else known


def _single(manifest: Manifest) -> pd.DataFrame:
    """Return rows of one finding each, bool [N,K]: of what a synthetic image was made for, or of a real one's label."""
    rows, findings = manifest.rows, list(manifest.findings)
    positive = rows[findings] >= 0.5
    for uid in rows.index[_synthetic(rows) == 1]:
        positive.loc[uid] = [name == rows.at[uid, "finding"] for name in findings]
    return positive[positive.sum(axis=1) == 1]


def _synthetic(rows: pd.DataFrame) -> pd.Series:
    return rows["synthetic"].astype(int) if "synthetic" in rows else pd.Series(0, rows.index)
