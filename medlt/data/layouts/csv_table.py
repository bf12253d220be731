"""A table of one's own with a row an image; its columns are named by the user where they differ from ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.found import Draft, Found, finish, renamed_parts
from medlt.data.layouts.options import TableOptions
from medlt.data.layouts.reading import read_table, require
from medlt.data.manifest import RESERVED
from medlt.types import InputError

ROLES = ("uid", "path", "patient_id", "split", "view")


def csv_table(src: Path, options: TableOptions) -> Found:
    """Read the table `src`, plain or gzipped. Raises InputError in one line.

    Without a `path` column images are found by their name, the uid; without a `uid` column the file's name is the
    uid; without a `split` column patients are split by hash. The patient has to be known: a column or an expression.
    """
    named = {str(role): name for role, name in options.column.items()}
    text = tuple(named.get(role, role) for role in ROLES)
    source = read_table(src, text)
    require(source, [*named.values(), *([options.train_flag] if options.train_flag else [])], src)
    findings = chosen_findings(source, options.findings, src, set(text))
    rows = pd.DataFrame(by_role(source, named)).reindex(index=source.index, columns=list(ROLES))
    rows = identified(rows, options.patient, src)
    carried = [c for c in options.keep if c in source and c not in rows and c not in findings]
    rows = rows.join(source[[*carried, *findings]])
    if options.train_flag:
        rows = rows[(rows["split"] != "train") | (pd.to_numeric(source[options.train_flag], errors="coerce") == 1)]
    root = options.images or src.parent
    files = tree.images(tree.listing(root))
    rows = rows.set_index(rows.pop("uid").rename("uid"))
    placed = tree.by_stem(rows, files) if rows["path"].isna().all() else tree.by_path(rows, files, root)
    return finish(Draft(placed, findings, root, src), options)


def identified(rows: pd.DataFrame, patient: str | None, source: Path) -> pd.DataFrame:
    """uid from the path where there is none, patient from path or uid by the expression, splits under our names."""
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
    """What the expression's first group, or all of it, finds in each path. Raises InputError where it finds nothing."""
    try:
        compiled = re.compile(expression if re.compile(expression).groups else f"({expression})")
    except re.error as error:
        raise InputError(f"--patient: {expression!r} is not a regular expression: {error}") from None
    found = paths.str.extract(compiled)[0]
    if (lost := found.isna() | (found == "")).any():
        told = f"{int(lost.sum())} of {len(paths)} paths hold no patient by --patient {expression!r}"
        raise InputError(f"{source}: {told}, such as {paths[lost].iloc[0]!r}")
    return found


def chosen_findings(source: pd.DataFrame, wanted: tuple[str, ...], table: Path, other: set[str]) -> tuple[str, ...]:
    """The label columns. Raises InputError if none is named, with the columns that might be meant."""
    if wanted:
        require(source, wanted, table)
        return wanted
    might = [str(c) for c in source.columns if c not in RESERVED | other and source[c].dropna().isin((0, 1, -1)).all()]
    told = f"; columns of 0, 1, -1 and blanks only: {','.join(might)}" if might else ""
    raise InputError(f"{table}: name the label columns with --findings A,B,...{told}")


def by_role(source: pd.DataFrame, named: Mapping[str, str]) -> dict[str, pd.Series]:
    """The columns that say what a row is, under our names, where they are there."""
    return {role: source[column] for role in ROLES if (column := named.get(role, role)) in source}
