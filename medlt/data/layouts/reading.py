"""Reads label tables, with identifiers as text: CSV in the forms that spreadsheets write, plain or gzipped, and .xlsx.

The separator (`,` `;` or tab) is the one that splits the first records into equally many fields. Text is UTF-8 with or
without a byte-order mark, UTF-16 with one, or else Windows-1252 (RFC 4180 leaves both open). In a table with `;` or
tab, numbers may have a decimal comma.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.data.columns import missing_columns
from medlt.types import InputError

LISTED = 3
"""Most names in one message."""
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
BLANKS = ("", "#N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null")
"""Texts of an empty cell. "None" is none of them: in a column of grades it means absent."""
WORKBOOKS = (".xlsx", ".xlsm")
_SAMPLE = 1 << 18
_DECIMAL = re.compile(r"[+-]?\d+(?:,\d+)?")


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table, and `notes` on how the file was read where that is not plain UTF-8 with commas."""

    rows: pd.DataFrame
    notes: tuple[str, ...] = ()


def read_table(table: Path, text: Sequence[str] | None = ()) -> pd.DataFrame:
    """Return the table with its `text` columns as text (leading zeros stay); None: all. Raises InputError."""
    return open_table(table, text).rows


def open_table(table: Path, text: Sequence[str] | None = (), sheet: str | None = None) -> LabelTable:
    """Return the table and how it was read; `sheet`: of a workbook, by default the first one.

    Raises InputError for a file that is no table or has no row, and for an .xlsx file without openpyxl.
    """
    table = Path(table)
    if not table.is_file():
        raise InputError(f"{table.absolute()}: no such table; check the path")
    suffix = table.suffix.lower()
    if suffix in (".xls", ".ods", ".numbers"):
        raise InputError(f"{table}: {suffix} is not read; save it as .xlsx or as CSV")
    dtype: Any = str if text is None else {name: str for one in text for name in (one, f"{one} ")}
    if suffix in WORKBOOKS:
        read = _workbook(table, dtype, sheet)
    elif sheet is not None:
        raise InputError(f"{table}: has no sheets; leave --sheet out")
    else:
        read = _plain(table, dtype)
    if not len(read.rows):
        raise InputError(f"{table}: the table has no row; check how it was made")
    return read


def _workbook(table: Path, dtype: Any, sheet: str | None) -> LabelTable:
    """Return a sheet of an .xlsx file."""
    try:
        with pd.ExcelFile(table, engine="openpyxl") as book:
            names = [str(name) for name in book.sheet_names]
            if sheet is not None and sheet not in names:
                raise InputError(f"{table}: no sheet {sheet!r}; choose --sheet from {', '.join(names)}")
            chosen = names[0] if sheet is None else sheet
            rows = pd.read_excel(book, chosen, dtype=dtype, keep_default_na=False, na_values=list(BLANKS))
    except ImportError:
        raise InputError(
            f"{table}: an .xlsx file needs openpyxl; pip install 'medlt[xlsx]', or save it as CSV"
        ) from None
    except InputError:
        raise
    except Exception as error:  # openpyxl raises errors of zipfile, of XML and of its own
        raise InputError(f"{table}: not readable as .xlsx: {str(error).splitlines()[0]}") from None
    rows = rows.dropna(how="all").rename(columns=lambda name: str(name).strip())
    others = f" of {len(names)}; choose another with --sheet" if len(names) > 1 and sheet is None else ""
    return LabelTable(rows, (f"{table.name}: sheet {chosen!r}{others}",))


def _plain(table: Path, dtype: Any) -> LabelTable:
    """Return a CSV file, in the encoding and with the separator that fit."""
    try:
        with gzip.open(table) if table.suffix == ".gz" else table.open("rb") as file:
            sample = file.read(_SAMPLE)
    except (OSError, EOFError) as error:
        raise InputError(f"{table}: not readable as CSV: {str(error).splitlines()[0]}") from None
    wide = sample[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not wide and b"\0" in sample:
        raise InputError(f"{table}: not readable as CSV: it is no text; check the path, or save it as CSV")
    separator = _separator(sample.decode("utf-16" if wide else "latin-1", "ignore").removeprefix("\xef\xbb\xbf"))
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            rows = pd.read_csv(
                table, sep=separator, encoding=encoding, dtype=dtype, low_memory=False, skipinitialspace=True,
                keep_default_na=False, na_values=list(BLANKS),
            )  # fmt: skip
            break
        except UnicodeDecodeError:
            continue
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{table}: not readable as CSV: {str(error).splitlines()[0]}") from None
    else:
        raise InputError(f"{table}: not readable as CSV: the text is in no known encoding; save it as UTF-8")
    if not rows.index.equals(pd.RangeIndex(len(rows))):
        raise InputError(
            f"{table}: its rows have more fields than its header; quote the cells that hold a {SEPARATORS[separator]}"
        )
    rows = rows.rename(columns=lambda name: str(name).strip())
    if separator != "," and isinstance(dtype, dict):
        rows = _decimal_commas(rows, frozenset(dtype))
    ways = [f"separator {SEPARATORS[separator]}"] if separator != "," else []
    ways += [f"encoding {'Windows-1252' if encoding == 'cp1252' else encoding}"] if encoding != "utf-8-sig" else []
    return LabelTable(rows, (f"{table.name}: {', '.join(ways)}",) if ways else ())


def _separator(sample: str) -> str:
    """Return the separator that gives the first records equally many fields, more than one; else the comma."""
    lines = sample[: sample.rfind("\n") + 1 if len(sample) >= _SAMPLE else None].splitlines()[:50]
    best, fields = ",", 1
    for separator in SEPARATORS:
        widths = {len(record) for record in csv.reader(lines, delimiter=separator) if record}
        if len(widths) == 1 and (width := widths.pop()) > fields:
            best, fields = separator, width
    if fields == 1 and lines:  # ragged records: the separator of the header
        best = max(SEPARATORS, key=lambda one: len(next(csv.reader(lines[:1], delimiter=one))))
    return best


def _decimal_commas(rows: pd.DataFrame, text: frozenset[str]) -> pd.DataFrame:
    """Return the rows with numbers for columns of texts such as '0,5'; columns in `text` stay."""
    for name in rows.columns:
        if name in text or pd.api.types.is_numeric_dtype(rows[name]):
            continue
        known = rows[name].dropna().astype(str).str.strip()
        if len(known) and known.str.fullmatch(_DECIMAL).all():
            rows[name] = pd.to_numeric(known.str.replace(",", ".", regex=False)).reindex(rows.index)
    return rows


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
