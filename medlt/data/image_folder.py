"""Reads a folder of synthetic images that any program made, with the labels of a table beside them.

The table is FOLDER/metadata.csv, or FOLDER/*/metadata.csv of each split, as a Hugging Face `imagefolder` has it, or any
CSV. It names the file in `file_name`, `path` or `image`, and has one column per finding (1, 0, blank for unknown, or a
soft label), or one column `finding` or `label` with the name of the finding. `uid` is the name of the file unless there
is such a column. Rows whose column `synthetic` is False are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medlt.data.columns import missing_columns
from medlt.data.images import image_shape
from medlt.data.manifest import Manifest
from medlt.names import did_you_mean
from medlt.types import InputError

FILES = ("file_name", "path", "image")
NAMED = ("finding", "label")
TABLE = "metadata.csv"
KEPT = ("view", "sex", "age", "parents")
FALSE = ("false", "0", "0.0", "no")


@dataclass(frozen=True)
class ImageFolder:
    """The readable images as a manifest of synthetic rows, and (file, reason) of those that are not readable."""

    manifest: Manifest
    failures: tuple[tuple[str, str], ...]


def read_image_folder(folder: Path, findings: Sequence[str], table: Path | None = None) -> ImageFolder:
    """Return the images of a folder with their labels of these findings; table: a CSV in place of metadata.csv.

    Raises InputError for a folder without a table, a table without files or labels, and equal uids.
    """
    rows = _rows(Path(folder), table)
    column = next((name for name in FILES if name in rows), None)
    if column is None:
        raise InputError(f"{table or folder / TABLE}: {missing_columns([FILES[0]], rows.columns)}")
    labels = _labels(rows, findings, table or folder / TABLE)
    uids = rows["uid"] if "uid" in rows else rows[column].map(lambda name: Path(name).stem)
    if (again := uids[uids.duplicated()]).size:
        raise InputError(f"{folder}: two images are named {again.iloc[0]!r}; give every image a uid in the table")
    about = rows[[name for name in ("view", "sex") if name in rows]]
    made = pd.concat([labels, about], axis=1).assign(
        path=[str(Path(place) / name) for place, name in zip(rows["_folder"], rows[column], strict=True)],
        patient_id=[f"synthetic-{uid}" for uid in uids],
        split="train",
        synthetic=True,
    )
    made = made.assign(view=rows["view"] if "view" in rows else "").set_index(pd.Index(uids, name="uid"))
    reasons = {str(uid): _problem(Path(str(file))) for uid, file in made["path"].items()}
    failures = tuple((str(made.at[uid, "path"]), reason) for uid, reason in reasons.items() if reason)
    good = made[[not reasons[str(uid)] for uid in made.index]]
    if good.empty:
        raise InputError(f"{folder}: no image is readable; the first: {failures[0][1]}" if failures else _empty(folder))
    return ImageFolder(Manifest(good, tuple(findings), Path(folder)), failures)


def _empty(folder: Path) -> str:
    return f"{folder}: the table names no synthetic image; check its rows"


def _rows(folder: Path, table: Path | None) -> pd.DataFrame:
    """Return all rows of the tables as text, with the absolute folder that their file names start from."""
    if not folder.is_dir():
        raise InputError(f"{folder.absolute()}: no such folder; give the folder of the images")
    files = [table] if table else sorted({*folder.glob(TABLE), *folder.glob(f"*/{TABLE}")})
    if not files:
        raise InputError(f"{folder.absolute()}: has no {TABLE}; write one, or give a table with --labels")
    parts = []
    for file in files:
        try:
            part = pd.read_csv(file, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not readable as CSV: {str(error).splitlines()[0]}") from None
        parts.append(part.assign(_folder=str((folder if table else file.parent).absolute())))
    rows = pd.concat(parts, ignore_index=True).fillna("")
    return rows[~rows["synthetic"].str.lower().isin(FALSE)] if "synthetic" in rows else rows


def _labels(rows: pd.DataFrame, findings: Sequence[str], table: Path) -> pd.DataFrame:
    """Return float labels of the findings, unknown where the table has no column; `finding` as the table has it."""
    named = next((name for name in NAMED if name in rows), None)
    known = [name for name in findings if name in rows]
    if not known and named is None:
        raise InputError(f"{table}: {missing_columns([str(findings[0])], rows.columns)}")
    if named is not None and (strange := sorted(set(rows[named]) - {"", *findings})):
        raise InputError(f"{table}: {strange[0]!r} is no finding of the run{did_you_mean(strange[0], findings)}")
    values = {name: _numbers(rows, name, table) if name in rows else float("nan") for name in findings}
    labels = pd.DataFrame(values, index=rows.index, dtype=float)
    if named is None:
        return labels
    if not known:
        for name in findings:
            labels.loc[rows[named] == name, name] = 1.0
    return labels.assign(finding=rows[named])


def _numbers(rows: pd.DataFrame, name: str, table: Path) -> pd.Series:
    """Return a label column as numbers in [0,1], NaN for a blank. Raises InputError for anything else."""
    values = pd.to_numeric(rows[name].str.strip().replace("", None), errors="coerce")
    bad = ~values.between(0, 1) & (rows[name].str.strip() != "")
    if bad.any():
        raise InputError(f"{table}: {name} is {rows.loc[bad, name].iloc[0]!r}; write 1, 0, a value between, or nothing")
    return values.astype(float)


def _problem(file: Path) -> str:
    """Return why an image cannot be read, '' if its header can."""
    try:
        image_shape(file)
    except InputError as error:
        return str(error)
    return ""
