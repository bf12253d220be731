"""Layout `nih-cxr-lt`: the long-tailed lists over the NIH ChestX-ray14 images, or the table of ChestX-ray14 itself.

Images are `00000001_000.png`, at any depth, as the archives unpack them (`images_001/images/...`; Wang et al., CVPR
2017). Lists: see `lists`. View, sex and age come from `Data_Entry_2017*.csv`, if present. With that table as SRC, or
release nih14, its own 14 findings are read, and `test_list*.txt` beside it defines the test split.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.lists import lists, not_read, one_release, read_lists, unread
from medlt.data.layouts.options import NihOptions
from medlt.data.layouts.reading import known_findings, only_table, read_table, require
from medlt.data.layouts.tables import NIH_COLUMNS, NIH_FINDINGS, listed_test, nih_flags, years
from medlt.remote import AnyFile
from medlt.types import InputError

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
    "Pneumoperitoneum",
    "Pneumomediastinum",
    "Subcutaneous Emphysema",
    "Tortuous Aorta",
    "Calcification of the Aorta",
    "No Finding",
)
"""Spelling of 2022; 'Pleural Thickening', as in 2023, is the same finding."""

_TEXT = ("id", "subject_id", "Image Index", "Patient ID", "Finding Labels")
_ENTRY = re.compile(r"Data_Entry_2017\w*\.csv(?:\.gz)?", re.IGNORECASE)
_TESTS = re.compile(r"test_list\w*\.txt", re.IGNORECASE)


def nih_cxr_lt(src: Path, options: NihOptions) -> LayoutResult:
    """Read the folder `src`, or a Data_Entry table. Raises InputError in one line."""
    folder = src.parent if src.is_file() else src
    files = tree.listing(folder)
    root = options.images or folder
    pictures = tree.images(files if root == folder else tree.listing(root))
    entry = src if src.is_file() else _only(files, folder, _ENTRY)
    strange = () if src.is_file() else unread(files, "nih", _ENTRY)
    if options.release == "nih14" or src.is_file():
        draft = _fourteen(entry, _only(files, folder, _TESTS), root, pictures, options)
        return finish(replace(draft, notes=(*draft.notes, *not_read(strange))), options)
    instead = f"--release nih14 for the 14 findings of {entry.name}" if entry else ""
    release, parts = one_release(lists(files, folder, "nih"), options.release, folder, strange, instead)
    rows, findings, notes = _listed(*read_lists(parts, _TEXT), entry)
    notes = (*notes, *not_read(strange))
    draft = Draft(tree.by_stem(rows, pictures), findings, root, folder, notes, labels=f"the lists of {release}")
    return finish(draft, options)


def _listed(
    source: pd.DataFrame, notes: tuple[str, ...], entry: Path | None
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Return rows by uid, the findings, and notes."""
    names = known_findings(source.columns, FINDINGS)
    if not names:
        raise InputError("the lists hold none of the 20 findings of NIH-CXR-LT; use the published lists")
    rows = source[["split", *(c for c in ("balanced_test",) if c in source), *names]].rename(columns=names)
    rows.insert(0, "path", source["id"])
    rows.insert(1, "patient_id", _patients(source["id"]))
    rows = rows.set_axis(pd.Index(tree.stems(source["id"]), name="uid"))
    if entry is None:
        return rows.assign(view=pd.NA), tuple(names.values()), (*notes, "no Data_Entry_2017 table: view is blank")
    return rows.join(_about(read_table(entry, _TEXT), entry)), tuple(names.values()), notes


def _about(entry: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Return view, sex and age by uid."""
    require(entry, NIH_COLUMNS, table)
    known = pd.DataFrame({"view": entry["View Position"], "sex": entry["Patient Gender"]})
    known["age"] = years(entry["Patient Age"])
    return known.set_axis(pd.Index(tree.stems(entry["Image Index"]), name="uid"))


def _fourteen(
    table: Path | None, tests: Path | None, root: AnyFile, pictures: pd.DataFrame, options: NihOptions
) -> Draft:
    """Return the Data_Entry table with its 14 findings and No_Finding, split as published or by patient."""
    if table is None:
        raise InputError(f"{root}: no Data_Entry_2017*.csv in it or in SRC; give the table itself as SRC")
    entry = read_table(table, _TEXT)
    rows = _about(entry, table).join(nih_flags(entry["Finding Labels"], table).set_axis(_uids(entry)))
    rows = rows.assign(path=entry["Image Index"].to_numpy(), patient_id=entry["Patient ID"].to_numpy(), split=pd.NA)
    if tests:
        rows["split"] = listed_test(entry["Image Index"], tests).to_numpy()
    notes = (f"test split by {tests.name}",) if tests else ()
    return Draft(tree.by_stem(rows, pictures), NIH_FINDINGS, root, table, notes)


def _uids(entry: pd.DataFrame) -> pd.Index:
    return pd.Index(tree.stems(entry["Image Index"]), name="uid")


def _patients(names: pd.Series) -> pd.Series:
    """Return '3' for '00000003_000.png', the patient's id in the Data_Entry table."""
    return names.str.extract(r"^0*(\d+)_", expand=False)


def _only(files: list[str], folder: Path, name: re.Pattern[str]) -> Path | None:
    paths = [folder / f for f in files if name.fullmatch(f.rsplit("/", 1)[-1])]
    return only_table(paths) if paths else None
