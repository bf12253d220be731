"""Reads tables into a Manifest. No image is opened, and files may be missing: see `Manifest.check_files`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medlt.data.columns import MASK, region_columns
from medlt.data.layouts.reading import read_table, require
from medlt.data.layouts.values import as_labels
from medlt.data.manifest import Manifest
from medlt.data.splits import complete_split, patient_split
from medlt.names import did_you_mean, no_finding
from medlt.types import InputError

NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
    "No_Finding",
)
NIH_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
UNCERTAIN = {"unknown": np.nan, "positive": 1.0, "negative": 0.0}


def from_csv(
    *,
    table: Path,
    root: Path | None = None,
    findings: Sequence[str],
    path: str = "path",
    uid: str = "uid",
    patient_id: str = "patient_id",
    split: str = "split",
    view: str | None = "view",
    extra_columns: Sequence[str] = ("sex", "age"),
    train_flag: str | None = None,
    uncertain: Literal["unknown", "positive", "negative"] = "unknown",
) -> Manifest:
    """Read a CSV with one row per image; `path`, `uid`, ... name its columns, `root` defaults to its folder.

    Labels are 1, 0, blank, words such as yes and no (`values`), or -1, whose meaning is `uncertain`. With `train_flag`,
    train rows are kept only if that column is 1. Columns `mask_FINDING` are kept. Raises InputError in one line on a
    missing table, a missing column or an invalid value.
    """
    names = dict.fromkeys((path, uid, patient_id, split, *([view] if view else [])))
    source = read_table(Path(table), text=tuple(names))
    flags = (train_flag,) if train_flag else ()
    require(source, (*names, *findings, *flags), Path(table))
    if train_flag:
        source = source[(source[split] != "train") | (pd.to_numeric(source[train_flag], errors="coerce") == 1)]
    rows = pd.DataFrame({"path": source[path], "patient_id": source[patient_id], "split": source[split]})
    rows["view"] = source[view] if view else pd.Series(pd.NA, source.index, dtype="str")
    masks = region_columns(source, findings, MASK).values()
    carried = [c for c in (*extra_columns, *masks) if c in source.columns and c not in rows.columns]
    rows[carried] = source[carried]
    labels, _ = as_labels(source[[*findings]], {}, source[uid], Path(table))
    if name := never_negative(labels):
        problem = f"{name} is 1 or blank and never 0, as programs that label reports write it"
        raise InputError(
            f"{table}: {problem}; use `medlt manifest csv` with --labeler or --blank, which give it a meaning"
        )
    rows[list(findings)] = labels.replace(-1.0, UNCERTAIN[uncertain])
    return _manifest(rows.set_index(source[uid]), tuple(findings), Path(root or Path(table).parent), Path(table))


def from_nih(*, table: Path, images: Path, test_list: Path | None = None, seed: int = 0) -> Manifest:
    """Read the NIH ChestX-ray14 table (Data_Entry_2017*.csv, also gzipped), whose findings are joined by '|'.

    `images` may hold the files at any depth, as the archives unpack (images_001/images/...). With the official
    `test_list` the patients of its images are test, and the others are split 7:1 into train and val; without it, all
    patients are split 70/10/20. Both are stratified by finding (`medlt.data.splits`).
    """
    source = read_table(Path(table), text=("Image Index", "Patient ID", "Finding Labels"))
    require(source, NIH_COLUMNS, Path(table))
    names = source["Image Index"]
    rows = pd.DataFrame({"path": _located(names, Path(images)), "patient_id": source["Patient ID"]})
    rows["view"] = source["View Position"]
    rows["sex"] = source["Patient Gender"]
    rows["age"] = years(source["Patient Age"])
    flags = nih_flags(source["Finding Labels"], Path(table))
    rows["split"] = nih_split(source, flags, test_list, seed)
    rows = rows.join(flags)
    stems = names.str.replace(r"\.\w+$", "", regex=True)
    return _manifest(rows.set_index(stems), NIH_FINDINGS, Path(images), Path(table))


def never_negative(labels: pd.DataFrame) -> str | None:
    """Return the no-finding column if it holds 1 and blanks and nothing else, as the labelers of reports write it."""
    name = no_finding(map(str, labels.columns))
    values = None if name is None else labels[name]
    return (
        name if values is not None and values.isna().any() and (values.dropna() == 1).all() and values.any() else None
    )


def nih_split(source: pd.DataFrame, labels: pd.DataFrame, test_list: Path | None, seed: int) -> pd.Series:
    """Return the split of each row of the NIH table, see `from_nih`. Raises InputError if there is no such list."""
    if test_list is None:
        return patient_split(source["Patient ID"], labels, seed)
    return complete_split(listed_test(source["Image Index"], test_list), source["Patient ID"], labels, seed)


def listed_test(names: pd.Series, test_list: Path) -> pd.Series:
    """Return 'test' for the image names in the list, blank for the others. Raises InputError if there is no list."""
    if not Path(test_list).is_file():
        place = Path(test_list).absolute()
        raise InputError(f"{place}: no such test list; leave test_list out to split patients by the seed")
    listed = names.isin(set(Path(test_list).read_text().split()))
    return pd.Series(pd.NA, names.index, dtype="str").mask(listed, "test")


def nih_flags(labels: pd.Series, table: Path) -> pd.DataFrame:
    """Return one 0/1 column per finding from 'A|B'. Raises InputError on a finding that the NIH table does not have."""
    flags = labels.fillna("").str.replace("No Finding", "No_Finding").str.get_dummies("|")
    if strange := [c for c in flags.columns if c not in NIH_FINDINGS]:
        close = did_you_mean(strange[0], NIH_FINDINGS)
        raise InputError(f"{table}: unknown finding {strange[0]!r}{close or '; use the NIH Data_Entry table'}")
    return flags.reindex(columns=list(NIH_FINDINGS), fill_value=0).astype(np.float64)


def years(ages: pd.Series) -> pd.Series:
    """Return years from '58' or '058Y'; the table's impossible ages (up to 414) become NaN."""
    digits = ages.astype(str).str.extract(r"^0*(\d+)Y?(?:\.0)?$")[0]
    years = pd.to_numeric(digits, errors="coerce").astype(np.float64)
    return years.where(years <= 120)


def _located(names: pd.Series, images: Path) -> pd.Series:
    """Return the path below `images` of each file name; the bare name if there is no such file."""
    paths: dict[str, str] = {}
    for folder, _, files in os.walk(images):
        below = os.path.relpath(folder, images)
        paths.update((f, os.path.normpath(os.path.join(below, f))) for f in files)
    return names.map(lambda name: paths.get(name, name))


def _manifest(rows: pd.DataFrame, findings: tuple[str, ...], root: Path, table: Path) -> Manifest:
    """Return the manifest; errors begin with the table's name."""
    if not len(rows):
        raise InputError(f"{table}: no row is left; check train_flag and split")
    try:
        return Manifest(rows, findings, root)
    except InputError as error:
        raise InputError(f"{table}: {error}") from None
