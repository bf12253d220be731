"""The labels of a table of one's own: one column a finding, one column with names of findings, or one row a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medlt.data.columns import RESERVED
from medlt.data.layouts.label_spec import policy
from medlt.data.layouts.options import OwnOptions
from medlt.data.layouts.readers import united
from medlt.data.layouts.reading import canonical, require
from medlt.data.layouts.tables import UNCERTAIN
from medlt.data.layouts.values import as_labels, is_label_column
from medlt.types import InputError

NAMING = ("label", "labels", "class", "classname", "finding", "findings", "findinglabels", "diagnosis", "category")
"""Usual names of a column that holds names of findings, in their canonical form."""

_READING = "image and reader"
REPEATED = "{} row(s) repeat another one and count once"


@dataclass(frozen=True)
class TableLabels:
    """`labels`: float64, one column per finding, by the rows of the table; rows of one image may repeat them."""

    labels: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings, in the order of the columns."""
        return tuple(str(name) for name in self.labels.columns)


def table_labels(
    source: pd.DataFrame, uids: pd.Series, options: OwnOptions, table: Path, other: set[str]
) -> TableLabels:
    """Return the labels in a table by the options; `other`: columns that are no labels. Raises InputError.

    Where several readers labelled an image, all its rows have the one label that the option `readers` makes of theirs.
    """
    if options.reader_column is not None:
        return _of_readers(source, uids, options, table, {*other, options.reader_column})
    if "readers" in options.model_fields_set:
        raise InputError("--readers needs the column that names the reader; give it with --reader-column")
    return _labels(source, uids, options, table, other)


def _labels(source: pd.DataFrame, uids: pd.Series, options: OwnOptions, table: Path, other: set[str]) -> TableLabels:
    """Return the labels by the rows of the table, where rows of one uid belong together."""
    if options.value_column and not options.label_column:
        raise InputError("--value-column needs the column with the names of findings; give it with --label-column")
    if options.label_column is None:
        findings = chosen_findings(source, options.findings, table, other)
        labels, notes = as_labels(source[[*findings]], options.value, uids, table)
        return TableLabels(labels, notes)
    require(source, [c for c in (options.label_column, options.value_column) if c], table)
    if options.value_column is None:
        if options.value:
            raise InputError("--value is for columns of values; --label-column without --value-column has names only")
        read = _named(source[options.label_column], uids, options.label_column, table)
    else:
        read = _by_finding(source, uids, options, table)
    return _selected(read, options.findings, table)


def chosen_findings(source: pd.DataFrame, wanted: tuple[str, ...], table: Path, other: set[str]) -> tuple[str, ...]:
    """Return the label columns; for "all", those of `is_label_column`. Raises InputError if none is named."""
    if wanted and (wanted != ("all",) or "all" in source):
        if refused := [name for name in wanted if name in RESERVED or name in other]:
            could = quoted(_label_columns(source, other))
            instead = f"use --findings {could}" if could else "leave it out of --findings"
            message = f"{refused[0]!r} is no finding: medlt uses this column otherwise"
            raise InputError(f"{table}: {message}; {instead}, or rename the column")
        require(source, wanted, table)
        return tuple(dict.fromkeys(wanted))
    columns = _label_columns(source, other)
    if wanted and columns:
        return columns
    candidates = f", or --findings all for those of labels only: {quoted(columns)}" if columns else ""
    naming = next((str(c) for c in source.columns if canonical(str(c)) in NAMING and c not in columns), None)
    names = f", or the column of their names with --label-column '{naming}'" if naming else ""
    raise InputError(f"{table}: name the label columns with --findings A,B,...{candidates}{names}")


def _label_columns(source: pd.DataFrame, other: set[str]) -> tuple[str, ...]:
    """Return the columns that hold labels only and have no other meaning."""
    return tuple(str(c) for c in source.columns if c not in RESERVED | other and is_label_column(source[c]))


def quoted(names: Sequence[str]) -> str:
    """Return names as --findings takes them: those with a comma in quotes."""
    return ",".join(f'"{name}"' if "," in name else name for name in names)


def one_row_each(
    rows: pd.DataFrame, key: str, table: Path, name: str = "uid", labels: Sequence[str] = ()
) -> tuple[pd.DataFrame, int]:
    """Return rows without exact duplicates, and their number; `name`: what messages call the column `key`.

    labels: the columns in which readers may differ, of whom the message then speaks.

    Raises InputError if two rows of a key differ.
    """
    single = rows[~rows.duplicated()]
    repeated = single[key].duplicated(keep=False)
    if repeated.any():
        first = single.loc[repeated, key].iloc[0]
        part = single[single[key] == first]
        column = next(str(c) for c in part.columns if part[c].nunique(dropna=False) > 1)
        one, two = map(_value, part[column].unique()[:2])
        values = "" if column == "patient_id" else f": {one} and {two}"
        readers = ", or name the column of their readers with --reader-column" if column in labels else ""
        raise InputError(
            f"{table}: {name} {first} has {len(part)} rows that differ in {column}{values}; keep one{readers}"
        )
    return single, len(rows) - len(single)


def _of_readers(
    source: pd.DataFrame, uids: pd.Series, options: OwnOptions, table: Path, other: set[str]
) -> TableLabels:
    """Return labels of several readers as one per image; -1 and blanks get their meaning before readers are counted."""
    assert options.reader_column is not None
    require(source, [options.reader_column], table)
    reader = source[options.reader_column].astype("str").str.strip()
    if (lost := reader.isna() | (reader == "")).any():
        problem = f"uid {uids[lost].iloc[0]}: {options.reader_column} is blank"
        raise InputError(f"{table}: {problem}; name the reader of every row, or drop the row")
    read = _labels(source, uids + ", reader " + reader, options, table, other)
    rows, _ = one_row_each(read.labels.assign(**{_READING: uids + ", reader " + reader}), _READING, table)
    labels = read.labels.loc[rows.index]
    spec = policy(options, None)
    labels = labels.fillna(0.0) if spec.blank == "negative" else labels
    labels, note = united(labels.replace(-1.0, UNCERTAIN[spec.uncertain]), uids[rows.index], options.readers)
    return TableLabels(
        labels.reindex(uids.to_numpy()).set_axis(source.index), (*read.notes, *((note,) if note else ()))
    )


def _named(cells: pd.Series, uids: pd.Series, column: str, table: Path) -> TableLabels:
    """Return labels from names of findings, joined by '|'; an image has those of all its rows, and no others.

    The labels of an image without any name are unknown.
    """
    texts = cells.astype("str").str.split("|").explode().str.strip()
    texts = texts[texts.notna() & (texts != "")]
    if not len(texts):
        raise InputError(f"{table}: column {column!r} holds no name; check --label-column")
    if pd.to_numeric(texts, errors="coerce").notna().all():
        message = f"column {column!r} holds numbers, not names of findings"
        raise InputError(f"{table}: {message}; if it is the label of one finding, use --findings '{column}'")
    present = pd.crosstab(uids.loc[texts.index].to_numpy(), texts.to_numpy()).gt(0).astype("float64")
    labels = present.reindex(uids.to_numpy()).set_axis(cells.index).rename_axis(columns=None)
    return TableLabels(
        labels, (f"{labels.shape[1]} findings by the names in {column!r}: {_first_names(labels.columns)}",)
    )


def _by_finding(source: pd.DataFrame, uids: pd.Series, options: OwnOptions, table: Path) -> TableLabels:
    """Return labels from one row per image and finding; a finding that an image has no row of is blank."""
    names, values = source[str(options.label_column)].astype("str").str.strip(), str(options.value_column)
    read, notes = as_labels(source[[values]], options.value, uids, table)
    long = pd.DataFrame({"uid": uids, "finding": names, "label": read[values]})
    long = long[names.notna() & (names != "")].drop_duplicates()
    torn = long.duplicated(["uid", "finding"], keep=False)
    if torn.any():
        row = long[torn].iloc[0]
        both = long[(long["uid"] == row["uid"]) & (long["finding"] == row["finding"])]["label"]
        one, two = map(_value, both.iloc[:2])
        raise InputError(
            f"{table}: finding {row['finding']}, uid {row['uid']}: two rows with {one} and {two}; keep one"
        )
    wide = long.pivot(index="uid", columns="finding", values="label").rename_axis(columns=None)
    labels = wide.reindex(uids.to_numpy()).set_axis(source.index)
    note = f"{labels.shape[1]} findings, one row each, of {options.label_column!r} and {values!r}"
    return TableLabels(labels, (f"{note}: {_first_names(labels.columns)}", *notes))


def _selected(read: TableLabels, wanted: Sequence[str], table: Path) -> TableLabels:
    """Return the wanted findings; all if none is named. Raises InputError for one that no row names."""
    if refused := [name for name in read.findings if name in RESERVED]:
        raise InputError(f"{table}: {refused[0]!r} cannot be a finding: medlt uses this name; rename it in the table")
    alike = pd.Series(read.findings).groupby([canonical(name) for name in read.findings]).agg(list)
    if twice := [names for names in alike if len(names) > 1]:
        spellings = " and ".join(map(repr, twice[0][:2]))
        raise InputError(f"{table}: {spellings} are spellings of one finding; write one of them in the table")
    if not wanted or tuple(wanted) == ("all",):
        return read
    require(read.labels, wanted, table)
    left = [name for name in read.findings if name not in wanted]
    notes = (f"findings left out: {_first_names(left)}",) if left else ()
    return TableLabels(read.labels[[*dict.fromkeys(wanted)]], (*read.notes, *notes))


def _value(cell: object) -> str:
    return "blank" if pd.isna(cell) else f"{cell:g}" if isinstance(cell, float) else repr(cell)


def _first_names(names: Sequence[str] | pd.Index) -> str:
    shown = ", ".join(map(str, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
