"""Reads label tables: CSV, plain or gzipped, with identifiers as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from medlt.data.columns import missing_columns
from medlt.types import InputError

LISTED = 3
"""Most names in one message."""


def read_table(table: Path, text: Sequence[str] | None = ()) -> pd.DataFrame:
    """Return the CSV with its `text` columns as text (leading zeros stay); None: all. Raises InputError if invalid."""
    if not table.is_file():
        raise InputError(f"{table.absolute()}: no such table; check the path")
    try:
        source = pd.read_csv(table, dtype=str if text is None else dict.fromkeys(text, str), low_memory=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{table}: not readable as CSV: {str(error).splitlines()[0]}") from None
    if not len(source):
        raise InputError(f"{table}: the table has no row; check how it was made")
    return source


def require(source: pd.DataFrame, columns: Sequence[str], table: Path) -> None:
    """Raise InputError, with the closest column, if the table lacks one of `columns`."""
    if missing := [c for c in columns if c not in source.columns]:
        raise InputError(f"{table}: {missing_columns(missing, source.columns)}")


def canonical(name: str) -> str:
    """Return a finding's name without case, blanks and underscores: releases spell one finding in several ways."""
    return re.sub(r"[^a-z0-9()]", "", name.lower())


def known_findings(columns: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Return {column: published name} of the columns that are `known` findings, in the order of `known`."""
    present = {canonical(str(column)): str(column) for column in columns}
    return {present[canonical(name)]: name for name in known if canonical(name) in present}


def few(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def only_table(paths: Sequence[Path]) -> Path:
    """Return the only table in `paths`, unpacked rather than .gz. Raises InputError if two folders hold it."""
    chosen = {path.with_name(path.name.removesuffix(".gz")): path for path in sorted(paths, reverse=True)}
    if len(chosen) > 1:
        first, second = sorted(chosen.values())[:2]
        raise InputError(f"{first} and {second} are the same list; give the folder of one of them as SRC")
    return next(iter(chosen.values()))
