"""Label tables as they lie on a disk: CSV, plain or gzipped, with identifiers kept as they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from medlt.types import InputError


def read_table(table: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """The CSV with its `text` columns as written (leading zeros stay). Raises InputError if it is none, or empty."""
    if not table.is_file():
        raise InputError(f"{table}: no such table; check the path")
    try:
        source = pd.read_csv(table, dtype=dict.fromkeys(text, str), low_memory=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{table}: not readable as CSV: {str(error).splitlines()[0]}") from None
    if not len(source):
        raise InputError(f"{table}: the table has no row; check the source it was made from")
    return source


def require(source: pd.DataFrame, columns: Sequence[str], table: Path) -> None:
    """Raise InputError naming the first of `columns` that the table lacks."""
    missing = [c for c in columns if c not in source.columns]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        present = ", ".join(map(str, source.columns))
        raise InputError(f"{table}: missing column {missing[0]!r}{more}; it has {present}")


def canonical(name: str) -> str:
    """A finding's name without case, blanks and underscores: releases spell one finding in several ways."""
    return re.sub(r"[^a-z0-9()]", "", name.lower())


def known_findings(columns: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """{column: published name} of the columns that are one of the `known` findings, in the order of `known`."""
    present = {canonical(str(column)): str(column) for column in columns}
    return {present[canonical(name)]: name for name in known if canonical(name) in present}


def named_twice(paths: Sequence[Path]) -> Path:
    """The one table meant by `paths`: an unpacked file stands for its .gz. Raises InputError if two folders hold it."""
    chosen = {path.with_name(path.name.removesuffix(".gz")): path for path in sorted(paths, reverse=True)}
    if len(chosen) > 1:
        first, second = sorted(chosen.values())[:2]
        raise InputError(f"{first} and {second} are the same list; point SRC at the folder of one of them")
    return next(iter(chosen.values()))
