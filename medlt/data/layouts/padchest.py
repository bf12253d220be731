"""Layout `padchest`: PadChest (Bustos et al., Med Image Anal 2020, arXiv 1901.07441).

`PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv`, also gzipped, one row per image: ImageID with .png, ImageDir
(the number of the archive), StudyDate_DICOM, StudyID, PatientID, PatientBirth, PatientSex_DICOM, Projection (PA, AP,
AP_horizontal, L, COSTAL, EXCLUDE), MethodLabel (Physician or RNN_model) and Labels, a list written as text:
"['normal', ' pleural effusion']". Column names as read by mlmed/torchxrayvision (datasets.py, PC_Dataset). Images may
be at any depth. A label that the list does not name is absent; an image without a list, or with notes only, has no
known label. A label implies those above it in the published tree, so that an image with a loculated pleural effusion
has a pleural effusion (`--tree implied`).
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.options_published import PadChestOptions
from medlt.data.layouts.padchest_tree import implied
from medlt.data.layouts.published import named_table, source_files
from medlt.data.layouts.reading import read_table, require
from medlt.names import did_you_mean
from medlt.types import InputError

COLUMNS = ("ImageID", "PatientID", "Labels")
EXCLUDED = "exclude"
NOTES = ("", EXCLUDED, "unchanged", "suboptimal study")
"""Entries of a list that are no radiological finding; an image with `EXCLUDED` is left out."""
_TEXT = (*COLUMNS, "ImageDir", "StudyID", "StudyDate_DICOM", "PatientBirth")
_VIEWS = {"L": "LATERAL", "EXCLUDE": pd.NA, "AP_horizontal": "AP"}


def padchest(src: Path, options: PadChestOptions) -> LayoutResult:
    """Read the folder `src` with the table, or the table. Raises InputError in one line."""
    folder, files, root, pictures = source_files(src, options.images)
    table = src if src.is_file() else named_table(files, folder, r"PADCHEST_.*labels.*\.csv(?:\.gz)?")
    if table is None:
        raise InputError(f"{folder.absolute()}: no PADCHEST_chest_x_ray_images_labels_*.csv; check SRC")
    source = read_table(table, _TEXT)
    require(source, COLUMNS, table)
    lists = _lists(source["Labels"], source["ImageID"], table)
    out = lists.map(lambda names: EXCLUDED in names)
    source, lists = source[~out], lists[~out]
    flags, gained = _flags(lists, table), dict[str, int]()
    if options.tree == "implied":
        flags, gained = implied(flags)
    labels = _selected(flags, options.findings, table).reindex(lists.index)
    rows = _rows(source).join(labels)
    notes = [f"{labels.shape[1]} labels by the lists of the reports"]
    if given := [f"{name} {gained[name]}" for name in labels if name in gained]:
        notes.append(f"labels implied by the tree: {', '.join(given)}; --tree ignored leaves them out")
    if out.any():
        notes.append(f"{int(out.sum())} image(s) with the label {EXCLUDED!r}, left out")
    if "MethodLabel" in source:
        counts = source["MethodLabel"].value_counts()
        notes.append(f"labels by MethodLabel: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    rows = rows.set_axis(pd.Index(tree.stems(source["ImageID"]), name="uid"))
    draft = Draft(tree.by_stem(rows, pictures), tuple(map(str, labels.columns)), root, table, tuple(notes))
    return finish(draft, options)


def _lists(texts: pd.Series, names: pd.Series, table: Path) -> pd.Series:
    """Return lists of labels, [] where there is none. Raises InputError for text that is no list of texts."""
    known: dict[str, list[str]] = {}
    for text in texts.dropna().unique():
        try:
            known[text] = [str(label).strip().lower() for label in ast.literal_eval(text)]
        except (ValueError, SyntaxError, TypeError):
            image = names[texts == text].iloc[0]
            raise InputError(f"{table}: Labels of {image} is {text[:60]!r}, not a list such as ['normal']") from None
    return texts.map(lambda text: known.get(text, []))


def _flags(lists: pd.Series, table: Path) -> pd.DataFrame:
    """Return a 0/1 column per label, for the images whose list names a finding."""
    labels = lists.explode().dropna()
    labels = labels[~labels.isin(NOTES)]
    if not len(labels):
        raise InputError(f"{table}: no image has a label; is this the published table?")
    return pd.crosstab(labels.index, labels.to_numpy()).gt(0).astype(np.float64).rename_axis(columns=None)


def _selected(flags: pd.DataFrame, wanted: tuple[str, ...], table: Path) -> pd.DataFrame:
    """Return the columns of the wanted labels, all by default. Raises InputError for a label of no image."""
    if wanted and wanted != ("all",):
        if unknown := [name for name in wanted if name.strip().lower() not in flags]:
            close = did_you_mean(unknown[0], flags.columns) or ";"
            raise InputError(f"{table}: no image has the label {unknown[0]!r}{close} correct --findings")
        flags = flags[[name.strip().lower() for name in wanted]]
    return flags


def _rows(source: pd.DataFrame) -> pd.DataFrame:
    """Return path, patient_id, study_id, split (blank: none is published), view, sex and age."""
    folder = source["ImageDir"] + "/" if "ImageDir" in source else ""
    rows = pd.DataFrame({"path": folder + source["ImageID"], "patient_id": source["PatientID"]})
    rows["path"] = rows["path"].fillna(source["ImageID"])
    rows["split"] = pd.NA
    rows["view"] = source["Projection"].replace(_VIEWS) if "Projection" in source else pd.NA
    if "StudyID" in source:
        rows["study_id"] = source["StudyID"]
    if "PatientSex_DICOM" in source:
        rows["sex"] = source["PatientSex_DICOM"].where(source["PatientSex_DICOM"].isin(("M", "F")))
    if {"StudyDate_DICOM", "PatientBirth"} <= {*source}:
        year, birth = (
            pd.to_numeric(source[name].str[:4], errors="coerce") for name in ("StudyDate_DICOM", "PatientBirth")
        )
        rows["age"] = (year - birth).where(lambda age: age.between(0, 120))
    return rows
