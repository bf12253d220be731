"""NIH-CXR-LT: the long-tailed lists over the NIH ChestX-ray14 images, or that collection's own table.

Images are `00000001_000.png`, at any depth, as the archives unpack them (`images_001/images/...`; Wang et al., CVPR
2017). Lists: see `lists`. `Data_Entry_2017*.csv` among the tables gives view, sex and age; with it alone, or as SRC
itself, its own 14 findings are read and `test_list*.txt` beside it makes the test split.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.found import Draft, Found, finish
from medlt.data.layouts.lists import lists, one_release, read_lists
from medlt.data.layouts.options import NihOptions
from medlt.data.layouts.reading import known_findings, named_twice, read_table, require
from medlt.data.layouts.tables import NIH_COLUMNS, NIH_FINDINGS, nih_flags, nih_split, years
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
"""As spelt in 2022; 'Pleural Thickening', as in 2023, is the same."""

_TEXT = ("id", "subject_id", "Image Index", "Patient ID", "Finding Labels")
_ENTRY = re.compile(r"Data_Entry_2017\w*\.csv(?:\.gz)?", re.IGNORECASE)
_TESTS = re.compile(r"test_list\w*\.txt", re.IGNORECASE)


def nih_cxr_lt(src: Path, options: NihOptions) -> Found:
    """Read the folder `src`, or a Data_Entry table. Raises InputError in one line."""
    folder = src.parent if src.is_file() else src
    files = tree.listing(folder)
    root = options.images or folder
    pictures = tree.images(files if root == folder else tree.listing(root))
    found = {} if src.is_file() else lists(files, folder, "nih")
    entry = src if src.is_file() else _one(files, folder, _ENTRY)
    if options.release == "nih14" or (not found and entry):
        return finish(_fourteen(entry, _one(files, folder, _TESTS), root, pictures, options), options)
    if not found:
        raise InputError(f"{src}: neither nih-cxr-lt lists nor a Data_Entry_2017 table are below it; check SRC")
    release, parts = one_release(found, options.release, folder)
    rows, findings, notes = _listed(*read_lists(parts, _TEXT), entry)
    told = (f"the lists of {release}", *notes)
    return finish(Draft(tree.by_stem(rows, pictures), findings, root, folder, told), options)


def _listed(
    source: pd.DataFrame, notes: tuple[str, ...], entry: Path | None
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """Rows by uid, the findings, and notes."""
    names = known_findings(source.columns, FINDINGS)
    if not names:
        raise InputError("the lists hold none of the 20 findings of NIH-CXR-LT; are they the published ones?")
    rows = source[["split", *(c for c in ("balanced_test",) if c in source), *names]].rename(columns=names)
    rows.insert(0, "path", source["id"])
    rows.insert(1, "patient_id", _patients(source["id"]))
    rows = rows.set_axis(pd.Index(tree.stems(source["id"]), name="uid"))
    if entry is None:
        return rows.assign(view=pd.NA), tuple(names.values()), (*notes, "no Data_Entry_2017 table: view is blank")
    return rows.join(_about(read_table(entry, _TEXT), entry)), tuple(names.values()), notes


def _about(entry: pd.DataFrame, table: Path) -> pd.DataFrame:
    """view, sex and age by uid."""
    require(entry, NIH_COLUMNS, table)
    known = pd.DataFrame({"view": entry["View Position"], "sex": entry["Patient Gender"]})
    known["age"] = years(entry["Patient Age"])
    return known.set_axis(pd.Index(tree.stems(entry["Image Index"]), name="uid"))


def _fourteen(table: Path | None, tests: Path | None, root: Path, pictures: pd.DataFrame, options: NihOptions) -> Draft:
    """The Data_Entry table with its 14 findings and No_Finding, split as published or by patient."""
    if table is None:
        raise InputError("no Data_Entry_2017*.csv below SRC; give the table itself as SRC")
    entry = read_table(table, _TEXT)
    rows = _about(entry, table).join(nih_flags(entry["Finding Labels"], table).set_axis(_uids(entry)))
    rows = rows.assign(path=entry["Image Index"].to_numpy(), patient_id=entry["Patient ID"].to_numpy(), split=pd.NA)
    if tests:
        rows["split"] = nih_split(entry, tests, options.seed).to_numpy()
    told = (f"test split by {tests.name}",) if tests else ()
    return Draft(tree.by_stem(rows, pictures), NIH_FINDINGS, root, table, told)


def _uids(entry: pd.DataFrame) -> pd.Index:
    return pd.Index(tree.stems(entry["Image Index"]), name="uid")


def _patients(names: pd.Series) -> pd.Series:
    """'3' from '00000003_000.png', as the Data_Entry table writes it."""
    return names.str.extract(r"^0*(\d+)_", expand=False)


def _one(files: list[str], folder: Path, name: re.Pattern[str]) -> Path | None:
    paths = [folder / f for f in files if name.fullmatch(f.rsplit("/", 1)[-1])]
    return named_twice(paths) if paths else None
