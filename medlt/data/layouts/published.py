"""What layouts of published collections share: their tables by name, and patients that no table names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.csv_table import ALONE, alone, patients
from medlt.data.layouts.reading import only_table
from medlt.data.splits import SHARES, patient_split
from medlt.remote import AnyFile
from medlt.types import InputError


def source_files(src: Path, images: AnyFile | None) -> tuple[Path, list[str], AnyFile, pd.DataFrame]:
    """Return the folder of the tables, its files, the folder of the images, and its image files.

    `src` may be a table: its folder counts then.
    """
    folder = src.parent if src.is_file() else src
    files = tree.listing(folder)
    root: AnyFile = images or folder
    return folder, files, root, tree.images(files if root == folder else tree.listing(root))


def named_table(files: Sequence[str], folder: Path, name: str) -> Path | None:
    """Return the only table whose file name matches `name`, or None. Raises InputError if two folders hold it."""
    pattern = re.compile(name, re.IGNORECASE)
    paths = [folder / file for file in files if pattern.fullmatch(file.rsplit("/", 1)[-1])]
    return only_table(paths) if paths else None


def unread_tables(files: Sequence[str], folder: Path, read: Sequence[Path | None]) -> tuple[str, ...]:
    """Return a note that names the tables in the folder that were not read, if there are any."""
    known = {path for path in read if path}
    tables = [
        f for f in files if re.search(r"\.(?:csv|csv\.gz|xlsx|json)$", f, re.IGNORECASE) and folder / f not in known
    ]
    if not tables:
        return ()
    more = f" and {len(tables) - 5} more" if len(tables) > 5 else ""
    return (f"tables that were not read: {', '.join(tables[:5])}{more}",)


def with_patients(rows: pd.DataFrame, expression: str | None, table: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows with `patient_id` by the expression on the path, and a note if each image is of another patient.

    Raises InputError without an expression: the table names no patient, so a split by patient needs the user's word.
    """
    if expression is None:
        raise InputError(
            f"{table}: names no patient; give --patient 'EXPRESSION' on the path, or --patient '(.+)' to count each "
            "image as a patient of its own (images of one patient may then be in different splits)"
        )
    rows = rows.assign(patient_id=patients(rows["path"], expression, table))
    return rows, (ALONE,) if alone(rows["patient_id"], expression) else ()


def with_val(rows: pd.DataFrame, findings: Sequence[str], seed: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows whose train patients are split 7:1 into train and val by finding, as no split val is published."""
    train, val, _ = SHARES
    mine = rows[rows["split"] == "train"]
    drawn = patient_split(
        mine["patient_id"], mine[list(findings)], seed, (train / (train + val), val / (train + val), 0.0)
    )
    split = rows["split"].where(rows["split"] != "train", drawn)
    return rows.assign(split=split), (f"val is a part of the train patients, with seed {seed}: 7 to 1 of each finding",)
