"""Text in tables that people may open in a spreadsheet: a cell of text never runs as a formula.

Spreadsheets compute a cell of a CSV file that begins with `=`, `+`, `-` or `@`, or with a tab or a carriage return
(OWASP, CSV Injection). Every table that medlt writes puts an apostrophe before such a text, and takes
it away when it reads the table. A number such as -1 stays a number. Names that other programs read back (uids,
findings, patients) are refused where a manifest is made, so the apostrophe never changes them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""The start of a formula, also one that already has apostrophes; the wide signs count in East Asian spreadsheets."""
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet could compute this text, or read it as escaped. A number is no formula."""
    return FORMULA.match(text) is not None and NUMBER.fullmatch(text) is None


def escape(value: Any) -> Any:
    """Return a text as a spreadsheet may hold it, anything else unchanged; `unescape` gives the same text back."""
    return f"'{value}" if isinstance(value, str) and is_formula(value) else value


def unescape(value: Any) -> Any:
    """Return the text that `escape` was given, anything else unchanged."""
    return value[1:] if isinstance(value, str) and value.startswith("'") and is_formula(value) else value


@dataclass(frozen=True)
class _UnixLines:
    """A file for `csv.writer`, which quotes a carriage return in a cell only where it ends its own lines with one."""

    file: TextIO

    def write(self, line: str) -> int:
        return self.file.write(line.removesuffix("\r\n") + "\n")

    def __iter__(self) -> Iterator[str]:  # without it pandas takes this for no file
        return iter(())


def write_rows(file: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV, with every text escaped."""
    csv.writer(_UnixLines(file), lineterminator="\r\n").writerows([escape(value) for value in row] for row in rows)


def as_csv(table: pd.DataFrame, *, index: bool = False) -> str:
    """Return a table as CSV text, with every text in cells, names of columns and index escaped."""
    text = io.StringIO(newline="")
    _changed(table, escape).to_csv(_UnixLines(text), index=index, lineterminator="\r\n")
    return text.getvalue()


def unescaped(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that `pandas.read_csv` read, without the apostrophes of `as_csv`."""
    return _changed(table, unescape)


def _changed(table: pd.DataFrame, change: Any) -> pd.DataFrame:
    """Return the table with every text changed; columns without such a text keep their type."""
    changed = table.set_axis([change(name) for name in table.columns], axis=1)
    for name in changed.select_dtypes(exclude=["number", "bool", "datetime"]).columns:
        values = [change(value) for value in changed[name]]
        if any(isinstance(new, str) and new != old for new, old in zip(values, changed[name], strict=True)):
            changed[name] = values
    return changed.set_axis(changed.index.map(change), axis=0) if changed.index.dtype.kind not in "iufb" else changed
