"""Layout `csv`: a table of your own, CSV or .xlsx. Options name the columns that have other names.

It has one row per image with one column per finding, or a column of names of findings, or one row per image and finding
(see `labelled`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medlt.data.columns import MASK, region_columns, safe_filename
from medlt.data.layouts import tree
from medlt.data.layouts.endings import by_ending
from medlt.data.layouts.labelled import REPEATED, one_row_each, table_labels
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish, renamed_parts
from medlt.data.layouts.options import OwnOptions, TableOptions
from medlt.data.layouts.reading import open_table, require
from medlt.remote import AnyFile
from medlt.types import InputError

ROLES = ("uid", "path", "patient_id", "split", "view")
ALONE = "each image counts as a patient of its own: images of one patient may be in different splits"


def csv_table(src: Path, options: TableOptions) -> LayoutResult:
    """Read the table `src`, CSV (plain or gzipped) or .xlsx. Raises InputError in one line.

    Without a `path` column, the uid is the image's file name; without a `uid` column, the file name is the uid, or the
    path if names repeat; without a `split` column, patients are split by finding. The patient must be known: by columns
    or a regular expression. Columns `mask_FINDING` are kept; their files are no images. Equal rows count once.
    """
    named = {str(role): name for role, name in options.column.items()}
    text = (*(named.get(role, role) for role in ROLES), *options.patient_key)
    names = [name for name in (options.label_column, options.reader_column) if name]
    opened = open_table(src, (*text, *names), options.sheet)
    source = opened.rows
    require(source, [*named.values(), *([options.train_flag] if options.train_flag else [])], src)
    rows = pd.DataFrame(by_role(source, named)).reindex(index=source.index, columns=list(ROLES))
    if options.patient_key:
        rows["patient_id"] = joint_patients(source, options, src)
    rows = identified(rows, options.patient, src)
    read = table_labels(source, rows["uid"], options, src, set(text))
    masks = [*region_columns(source, read.findings, MASK).values()]
    carried = [c for c in (*options.extra_columns, *masks) if c in source and c not in (*rows, *read.findings)]
    rows = rows.join(source[carried]).join(read.labels)
    if options.train_flag:
        rows = rows[(rows["split"] != "train") | (pd.to_numeric(source[options.train_flag], errors="coerce") == 1)]
    rows, repeated = one_row_each(rows, "uid", src, labels=read.findings)
    notes = [*opened.notes, *read.notes]
    if repeated and not names:
        notes.append(REPEATED.format(repeated))
    if alone(rows["patient_id"], options.patient):
        notes.append(ALONE)
    root = options.images or src.parent
    files = tree.without(tree.images(tree.listing(root)), source[masks])
    matched = _matched(rows.set_index(rows.pop("uid").rename("uid")), files, root)
    return finish(Draft(matched, read.findings, root, src, tuple(notes)), options)


def identified(rows: pd.DataFrame, patient: str | None, source: Path) -> pd.DataFrame:
    """Return rows with uids (from the path if there is no column), patients (by the expression) and standard splits."""
    rows = rows.assign(**{role: rows[role].astype("str").str.strip() for role in ("uid", "path", "patient_id")})
    if rows["path"].isna().all() and rows["uid"].str.contains("/", regex=False).any():
        rows = rows.assign(path=rows["uid"], uid=pd.NA)
    if rows["uid"].isna().all():
        if rows["path"].isna().all():
            raise InputError(f"{source}: neither a uid nor a path column; name one with --column uid=NAME")
        rows = rows.assign(uid=uids_of(rows["path"]))
    elif rows["path"].isna().all():
        rows = rows.assign(uid=tree.stems(rows["uid"]))
    if patient is not None:
        rows = rows.assign(patient_id=patients(rows["path"].fillna(rows["uid"]), patient, source))
    elif rows["patient_id"].isna().all():
        raise InputError(
            f"{source}: no patient_id; name its column with --column patient_id=NAME, or --patient 'EXPRESSION' on the "
            "path ('(.+)' if every image is of another patient)"
        )
    return rows.assign(split=renamed_parts(rows["split"].astype("str")))


def uids_of(paths: pd.Series) -> pd.Series:
    """Return file names without suffix as uids, or paths with '__' for '/' if images of one name are in two folders."""
    names = tree.stems(paths)
    if names.nunique() < paths.nunique():
        names = tree.stems(paths.str.replace("/", "__"))
    return names.map(safe_filename, na_action="ignore")


def alone(patient: pd.Series, expression: str | None) -> bool:
    """Return whether an expression gives each of several images another patient."""
    return expression is not None and len(patient) > 1 and patient.is_unique


def patients(paths: pd.Series, expression: str, source: Path) -> pd.Series:
    """Return the match of the expression's first group, or of all of it, in each path. Raises InputError if none."""
    try:
        compiled = re.compile(expression if re.compile(expression).groups else f"({expression})")
    except re.error as error:
        raise InputError(f"--patient: {expression!r} is not a regular expression: {error}") from None
    matches = paths.str.extract(compiled)[0]
    if (lost := matches.isna() | (matches == "")).any():
        message = f"--patient {expression!r} does not match {int(lost.sum())} of {len(paths)} paths"
        raise InputError(f"{source}: {message}, such as {paths[lost].iloc[0]!r}")
    return matches


def joint_patients(source: pd.DataFrame, options: OwnOptions, table: Path) -> pd.Series:
    """Return one id a patient from all columns of --patient-key, 'site/id'; blank where one of them is blank.

    Two patients never get one id: '/' and '%' inside a value are percent-encoded.
    """
    if options.patient is not None:
        raise InputError(f"{table}: --patient and --patient-key both name the patient; give one of them")
    require(source, options.patient_key, table)
    first, *others = (
        source[name].astype("str").str.replace("%", "%25").str.replace("/", "%2F") for name in options.patient_key
    )
    return first.str.cat(others, sep="/") if others else first


def by_role(source: pd.DataFrame, named: Mapping[str, str]) -> dict[str, pd.Series]:
    """Return the columns uid, path, patient_id, split and view under these names, those that exist."""
    return {role: source[column] for role in ROLES if (column := named.get(role, role)) in source}


def _matched(rows: pd.DataFrame, files: pd.DataFrame, root: AnyFile) -> tree.MatchedImages:
    """Match rows to files: by uid without paths, else by path, or by its end if no path is that of a file."""
    if rows["path"].isna().all():
        by_name = tree.by_stem(rows, files)
        return replace(by_name, rows=by_name.rows.assign(path=by_name.rows["path"].fillna(rows.index.to_series())))
    matched = tree.by_path(rows, files, root)
    if matched.rows["exists"].any():
        return matched
    plain = files.loc[files["plain"].astype(bool), "path"]
    path, note = by_ending(matched.rows["path"].str.replace("\\", "/", regex=False), plain)
    if not note:
        return matched
    unmatched = files[~files["path"].isin(path)]
    rows = matched.rows.assign(path=path.fillna(matched.rows["path"]), exists=path.notna())
    return tree.MatchedImages(rows, unmatched, (*matched.notes, note))
