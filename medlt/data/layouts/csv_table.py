"""Layout `csv`: a table of your own with one row per image. Options name the columns that have other names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medlt.data.columns import MASK, region_columns
from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish, renamed_parts
from medlt.data.layouts.options import OwnOptions, TableOptions
from medlt.data.layouts.reading import read_table, require
from medlt.data.manifest import RESERVED
from medlt.types import InputError

ROLES = ("uid", "path", "patient_id", "split", "view")


def csv_table(src: Path, options: TableOptions) -> LayoutResult:
    """Read the table `src`, plain or gzipped. Raises InputError in one line.

    Without a `path` column, the uid is the image's file name; without a `uid` column, the file name is the uid; without
    a `split` column, patients are split by finding. The patient must be known: by a column or a regular expression.
    Columns `mask_FINDING` are kept; their files are no images.
    """
    named = {str(role): name for role, name in options.column.items()}
    text = (*(named.get(role, role) for role in ROLES), *options.patient_key)
    source = read_table(src, text)
    require(source, [*named.values(), *([options.train_flag] if options.train_flag else [])], src)
    findings = chosen_findings(source, options.findings, src, set(text))
    rows = pd.DataFrame(by_role(source, named)).reindex(index=source.index, columns=list(ROLES))
    if options.patient_key:
        rows["patient_id"] = joint_patients(source, options, src)
    rows = identified(rows, options.patient, src)
    masks = region_columns(source, findings, MASK).values()
    carried = [c for c in (*options.extra_columns, *masks) if c in source and c not in rows and c not in findings]
    rows = rows.join(source[[*carried, *findings]])
    if options.train_flag:
        rows = rows[(rows["split"] != "train") | (pd.to_numeric(source[options.train_flag], errors="coerce") == 1)]
    root = options.images or src.parent
    files = tree.without(tree.images(tree.listing(root)), source[[*masks]])
    rows = rows.set_index(rows.pop("uid").rename("uid"))
    matched = tree.by_stem(rows, files) if rows["path"].isna().all() else tree.by_path(rows, files, root)
    return finish(Draft(matched, findings, root, src), options)


def identified(rows: pd.DataFrame, patient: str | None, source: Path) -> pd.DataFrame:
    """Return rows with uids (from the path if there is no column), patients (by the expression) and standard splits."""
    if rows["uid"].isna().all():
        if rows["path"].isna().all():
            raise InputError(f"{source}: neither a uid nor a path column; name one with --column uid=NAME")
        rows = rows.assign(uid=tree.stems(rows["path"]))
    if patient is not None:
        rows = rows.assign(patient_id=patients(rows["path"].fillna(rows["uid"]), patient, source))
    elif rows["patient_id"].isna().all():
        raise InputError(
            f"{source}: no patient_id; name its column with --column patient_id=NAME, or --patient 'EXPRESSION' on the "
            "path ('(.+)' if every image is of another patient)"
        )
    return rows.assign(split=renamed_parts(rows["split"].astype("str")))


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


def chosen_findings(source: pd.DataFrame, wanted: tuple[str, ...], table: Path, other: set[str]) -> tuple[str, ...]:
    """Return the label columns; those of 0, 1, -1 and blanks only for "all". Raises InputError if none is named."""
    if wanted and (wanted != ("all",) or "all" in source):
        require(source, wanted, table)
        return wanted
    values = {str(c): source[c].dropna() for c in source.columns if c not in RESERVED | other}
    could = [name for name, known in values.items() if len(known) and known.isin((0, 1, -1)).all()]
    if wanted and could:
        return tuple(could)
    candidates = f", or --findings all for those of 0, 1, -1 and blanks only: {','.join(could)}" if could else ""
    raise InputError(f"{table}: name the label columns with --findings A,B,...{candidates}")


def by_role(source: pd.DataFrame, named: Mapping[str, str]) -> dict[str, pd.Series]:
    """Return the columns uid, path, patient_id, split and view under these names, those that exist."""
    return {role: source[column] for role in ROLES if (column := named.get(role, role)) in source}
