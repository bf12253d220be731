"""What the columns of a manifest hold: made uniform, then checked. Each error is one line that says what to mend."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import pandas as pd

from medlt.types import InputError

SPLITS = ("train", "val", "test")
REQUIRED = ("path", "patient_id", "split", "view")
RESERVED = frozenset((*REQUIRED, "uid", "sex", "age", "content", "synthetic", "weight", "parents", "method"))
UNPRINTED = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of signs that are no text in a line: controls, surrogates, ends of lines and paragraphs."""
PLAIN = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_ .,+=@-]*[A-Za-z0-9_.,+=@-])?")
"""Most uids, known as fit at a glance."""
LONGEST = 200
"""Bytes of a uid in UTF-8: it names files, beside an ending and what marks a file as unfinished."""


def uids_in(value: Any) -> list[str]:
    """The uids in one entry of a `parents` column: a list, tuple or array of them; None or NaN for none.

    Raises TypeError for text, which does not say where a uid ends.
    """
    if isinstance(value, list | tuple | np.ndarray):
        return [str(uid) for uid in value]
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return []
    raise TypeError(f"{value!r} is no list of uids")


def recorded_findings(rows: pd.DataFrame) -> tuple[str, ...]:
    """As written by `Manifest.write`; in a table made elsewhere, every number column that has no other meaning."""
    if recorded := rows.attrs.get("findings"):
        return tuple(recorded)
    numbers = rows.select_dtypes("number").columns
    return tuple(str(c) for c in numbers if c not in RESERVED)


def normal(rows: pd.DataFrame, findings: tuple[str, ...]) -> pd.DataFrame:
    """A copy: keys as str, findings as float64, parents as lists, whole numbers without gaps as plain integers.

    Raises InputError on a label that is no number, and on parents that are no lists.
    """
    rows = rows.copy()
    rows.attrs = {}
    if rows.index.hasnans:
        raise InputError(f"{int(rows.index.isna().sum())} row(s) have no uid; give every image one")
    rows.index = rows.index.astype(str).rename("uid")
    for column in ("path", "patient_id", "split"):
        if rows[column].notna().all():
            rows[column] = rows[column].astype(str)
    for finding in findings:
        rows[finding] = _numbers(rows[finding], finding)
    if "parents" in rows:
        rows["parents"] = _parents(rows["parents"])
    for name in rows.select_dtypes(["Int64", "UInt64"]).columns:
        if not rows[name].isna().any():
            rows[name] = rows[name].astype(rows[name].dtype.name.lower())
    return rows


def with_gaps(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """`rows`, its integer columns able to hold gaps where `other` lacks the column: beside it they stay integers."""
    lacking = [name for name in rows.select_dtypes("integer").columns if name not in other]
    wide = {name: "UInt64" if pd.api.types.is_unsigned_integer_dtype(rows[name]) else "Int64" for name in lacking}
    return rows.astype(wide)


def check(rows: pd.DataFrame, findings: tuple[str, ...]) -> None:
    """Raise InputError unless normal rows are a manifest's."""
    for one in (_check_uids, _check_required, _check_splits, _check_patients):
        one(rows)
    _check_labels(rows, findings)


def more(items: Sized) -> str:
    """' (and N more)' beside the first of several items."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def check_columns(rows: pd.DataFrame, findings: tuple[str, ...]) -> None:
    """Raise InputError unless the columns that a manifest needs are there, once each."""
    if not findings:
        raise InputError("no finding column; name the label columns in 'findings'")
    if clash := [f for f in findings if f in RESERVED]:
        raise InputError(f"{clash[0]!r} cannot be a finding: the name has another meaning; rename the column")
    if len(set(findings)) < len(findings):
        raise InputError(f"a finding is named twice in {', '.join(findings)}")
    if rows.columns.has_duplicates:
        raise InputError(f"column {rows.columns[rows.columns.duplicated()][0]} appears twice; drop one")
    missing = [c for c in (*REQUIRED, *findings) if c not in rows.columns]
    if missing:
        raise InputError(
            f"missing column {missing[0]}{more(missing)}; the table has {', '.join(map(str, rows.columns))}"
        )


def _numbers(values: pd.Series, finding: str) -> pd.Series:
    """float64, blank as NaN; raises InputError on text."""
    if pd.api.types.is_numeric_dtype(values):
        return values.astype(np.float64)
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = numbers.isna() & values.notna()
    if wrong.any():
        raise InputError(
            f"finding {finding}, uid {wrong.idxmax()}: label {values[wrong].iloc[0]!r} is not 0, 1 or blank"
        )
    return numbers.astype(np.float64)


def _parents(values: pd.Series) -> pd.Series:
    """Lists of str; raises InputError on anything else."""
    lists = []
    for uid, value in values.items():
        try:
            lists.append(uids_in(value))
        except TypeError:
            raise InputError(f"uid {uid}: parents is {value!r}; give a list of uids, also for a single one") from None
    return pd.Series(lists, index=values.index, dtype=object)


def _check_uids(rows: pd.DataFrame) -> None:
    repeated = rows.index[rows.index.duplicated()].unique()
    if len(repeated):
        raise InputError(f"uid {repeated[0]} appears more than once{more(list(repeated))}; every image needs its own")
    if (rows.index == "").any():
        raise InputError("a row has an empty uid; give every image one")
    wrong = [(uid, why) for uid in rows.index if (why := unfit_for_a_file(uid))]
    if wrong:
        uid, why = wrong[0]
        told = f"uid {uid[:60]!r} {why}{more(wrong)}"
        raise InputError(f"{told}; it names files, so give another, for example the file's name without its ending")


def unfit_for_a_file(uid: str) -> str:
    """Why this uid cannot be the name of a file, a clause; empty if it can."""
    if len(uid) <= LONGEST and PLAIN.fullmatch(uid):
        return ""
    if "/" in uid or "\\" in uid:
        return "holds a slash"
    if uid.startswith("."):
        return "begins with a dot"
    if any(unicodedata.category(sign) in UNPRINTED for sign in uid):
        return "holds a line break or another sign that cannot be printed"
    if uid != uid.strip():
        return "begins or ends with a blank"
    if len(uid.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return ""


def fit_for_a_file(name: str) -> str:
    """The same name with '_' for every sign that a uid may not hold, and without a blank or dot where it may not be."""
    signs = ("_" if sign in "/\\" or unicodedata.category(sign) in UNPRINTED else sign for sign in name)
    named = "".join(signs).strip()
    return f"_{named[1:]}" if named.startswith(".") else named


def _check_required(rows: pd.DataFrame) -> None:
    for column in ("path", "patient_id", "split"):
        blank = rows.index[rows[column].isna() | (rows[column] == "")]
        if len(blank):
            raise InputError(f"uid {blank[0]}: {column} is blank{more(list(blank))}; fill it or drop the row")


def _check_splits(rows: pd.DataFrame) -> None:
    wrong = rows.index[~rows["split"].isin(SPLITS)]
    if len(wrong):
        value = rows["split"].loc[wrong[0]]
        raise InputError(f"uid {wrong[0]}: unknown split {value!r}{more(list(wrong))}; use {', '.join(SPLITS)}")


def _check_patients(rows: pd.DataFrame) -> None:
    pairs = rows[["patient_id", "split"]].drop_duplicates()
    torn = pairs["patient_id"][pairs["patient_id"].duplicated()].unique()
    if len(torn):
        where = " and ".join(sorted(pairs["split"][pairs["patient_id"] == torn[0]]))
        uid = rows.index[rows["patient_id"] == torn[0]][0]  # an id of a patient is not for logs
        raise InputError(f"the patient of uid {uid} is in splits {where}{more(list(torn))}; keep each in one split")


def _check_labels(rows: pd.DataFrame, findings: Sequence[str]) -> None:
    soft = rows["synthetic"].fillna(False).astype(bool) if "synthetic" in rows else pd.Series(False, rows.index)
    for finding in findings:
        values = rows[finding]
        wrong = values[~(values.isna() | values.isin((0.0, 1.0)) | (soft & values.between(0, 1)))]
        if len(wrong):
            told = f"label {wrong.iloc[0]:g} is not 0, 1 or blank{more(wrong)}"
            raise InputError(f"finding {finding}, uid {wrong.index[0]}: {told}; see 'uncertain' for -1")
