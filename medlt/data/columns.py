"""The columns of a manifest: normalisation and checks. Each error is one line that says how to fix the table."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import pandas as pd

from medlt.csv_text import is_formula
from medlt.names import did_you_mean
from medlt.types import InputError

SPLITS = ("train", "val", "test")
REQUIRED = ("path", "patient_id", "split", "view")
PROVENANCE = ("synthetic", "weight", "parents", "method", "run", "models", "finding", "seed")
"""Columns of synthetic rows."""
IDENTIFIERS = ("patient_id", "study_uid", "series_uid", "sop_uid", "accession")
"""Columns of a converted image that lead to its source."""
RESERVED = frozenset((*REQUIRED, "uid", "sex", "age", "content", "mask_content", *PROVENANCE))
MASK, BOX, SIDE = "mask_", "box_", "side_"
"""Prefixes of the columns that say where a finding is, see `medlt.data.regions` and `medlt.data.sides`."""
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that cannot stand in a line of text: controls, surrogates, line and paragraph separators."""
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks of the direction of text, which show a name in another order than it has (UAX 9; CVE-2021-42574)."""
PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_ .,+=@-]*[A-Za-z0-9_.,+=@-])?")
"""Matches most valid uids: a fast path."""
LONGEST = 200
"""Longest uid or finding in bytes of UTF-8: file names also need a suffix and a mark for temporary files."""
FORMULA = "begins like a formula, which a spreadsheet would compute"


def uids_in(value: Any) -> list[str]:
    """Return the uids in one entry of a `parents` column: a list, tuple or array; None or NaN for no parents.

    Raises TypeError for text, in which the end of a uid is undefined.
    """
    if isinstance(value, list | tuple | np.ndarray):
        return [str(uid) for uid in value]
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return []
    raise TypeError(f"{value!r} is not a list of uids")


def recorded_findings(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the findings that `Manifest.write` recorded, else every numeric column without another meaning."""
    if recorded := rows.attrs.get("findings"):
        return tuple(recorded)
    numbers = [str(c) for c in rows.select_dtypes("number").columns if c not in RESERVED]
    return tuple(c for c in numbers if not (c.startswith((MASK, BOX)) and rows[c].isna().all()))


def region_columns(rows: pd.DataFrame, findings: Sequence[str], prefix: str) -> dict[str, str]:
    """Return finding -> column of its masks (prefix MASK), boxes (BOX) or sides (SIDE), for those that have one."""
    columns = {finding: f"{prefix}{finding}" for finding in findings}
    return {finding: name for finding, name in columns.items() if name in rows and name not in findings}


def normalize(rows: pd.DataFrame, findings: tuple[str, ...]) -> pd.DataFrame:
    """Return a copy: keys as str, findings as float64, parents as lists, nullable integers without gaps as integers.

    Raises InputError on a label that is not a number, and on parents that are not lists.
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
    for name in region_columns(rows, findings, MASK).values():
        rows[name] = _texts(rows[name])
    for name in region_columns(rows, findings, BOX).values():
        rows[name] = _boxes(rows[name])
    for name in rows.select_dtypes(["Int64", "UInt64"]).columns:
        if not rows[name].isna().any():
            rows[name] = rows[name].astype(rows[name].dtype.name.lower())
    return rows


def with_nullable_integers(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` with nullable integer columns where `other` lacks the column, so that both can be concatenated."""
    lacking = [name for name in rows.select_dtypes("integer").columns if name not in other]
    wide = {name: "UInt64" if pd.api.types.is_unsigned_integer_dtype(rows[name]) else "Int64" for name in lacking}
    return rows.astype(wide)


def check(rows: pd.DataFrame, findings: tuple[str, ...]) -> None:
    """Raise InputError unless normalised rows are a valid manifest."""
    for validate in (_check_uids, _check_required, _check_patient_names, _check_splits, _check_patients):
        validate(rows)
    _check_labels(rows, findings)
    _check_regions(rows, findings)


def more(items: Sized) -> str:
    """Return ' (and N more)' for a message that names the first of several items."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def missing_columns(missing: Sequence[str], present: Iterable[object]) -> str:
    """Return a clause that names the first of the `missing` columns, the closest column and the `present` ones."""
    there = [str(column) for column in present]
    close = did_you_mean(missing[0], there) or ";"
    return f"missing column {missing[0]!r}{more(missing)}{close} the table has {', '.join(there)}"


def check_columns(rows: pd.DataFrame, findings: tuple[str, ...]) -> None:
    """Raise InputError unless the columns that a manifest needs are present, once each."""
    if not findings:
        raise InputError("no finding column; name the label columns in 'findings'")
    if clash := [f for f in findings if f in RESERVED]:
        raise InputError(f"{clash[0]!r} cannot be a finding: medlt uses this column name; rename the column")
    if len(set(findings)) < len(findings):
        raise InputError(f"a finding is named twice in {', '.join(findings)}; name each once")
    for finding in findings:
        if problem := text_problem(str(finding)):
            raise InputError(f"finding {str(finding)[:60]!r} {problem}; rename the column")
    if rows.columns.has_duplicates:
        raise InputError(f"column {rows.columns[rows.columns.duplicated()][0]} appears twice; drop one")
    missing = [c for c in (*REQUIRED, *findings) if c not in rows.columns]
    if missing:
        raise InputError(missing_columns(missing, rows.columns))


def _numbers(values: pd.Series, finding: str) -> pd.Series:
    """Return float64 values, blank as NaN. Raises InputError on text."""
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
    """Return lists of str. Raises InputError on anything else."""
    lists = []
    for uid, value in values.items():
        try:
            lists.append(uids_in(value))
        except TypeError:
            raise InputError(f"uid {uid}: parents is {value!r}; give a list of uids, even for one parent") from None
    return pd.Series(lists, index=values.index, dtype=object)


def _texts(values: pd.Series) -> pd.Series:
    """Return text, None where blank."""
    known = values.notna() & (values.astype(str) != "")
    return pd.Series(
        [str(value) if there else None for value, there in zip(values, known, strict=True)], values.index, dtype=object
    )


def _boxes(values: pd.Series) -> pd.Series:
    """Return lists of float, None where blank. Raises InputError on anything but corners inside the square."""
    lists = []
    for uid, value in values.items():
        corners = _corners(value)
        if corners is None:
            problem = f"{values.name} is {value!r}"
            raise InputError(f"uid {uid}: {problem}; give left, top, right, bottom of each box as shares of the square")
        lists.append(corners or None)
    return pd.Series(lists, index=values.index, dtype=object)


def _corners(value: Any) -> list[float] | None:
    """Return the corners in one entry of a column of boxes, [] if it is blank, None if they are not valid."""
    if not isinstance(value, list | tuple | np.ndarray):
        return [] if pd.isna(value) else None
    numbers = np.asarray(value, np.float64).reshape(-1)
    if numbers.size % 4 or not np.isfinite(numbers).all():
        return None
    left, top, right, bottom = numbers.reshape(-1, 4).T
    inside = (numbers >= 0).all() and (numbers <= 1).all() and (left < right).all() and (top < bottom).all()
    return [float(number) for number in numbers] if inside else None


def _check_uids(rows: pd.DataFrame) -> None:
    repeated = rows.index[rows.index.duplicated()].unique()
    if len(repeated):
        raise InputError(f"uid {repeated[0]} appears more than once{more(list(repeated))}; every image needs its own")
    if (rows.index == "").any():
        raise InputError("a row has an empty uid; give every image one")
    wrong = [(uid, problem) for uid in rows.index if (problem := filename_problem(uid))]
    if wrong:
        uid, problem = wrong[0]
        message = f"uid {uid[:60]!r} {problem}{more(wrong)}"
        raise InputError(f"{message}; uids are file names: use, for example, the image's file name without its suffix")


def filename_problem(uid: str) -> str:
    """Return why this uid cannot be a file name, as a clause; empty if it can."""
    if len(uid) <= LONGEST and PLAIN.fullmatch(uid):
        return ""
    if "/" in uid or "\\" in uid:
        return "holds a slash"
    return "begins with a dot" if uid.startswith(".") else text_problem(uid)


def text_problem(text: str) -> str:
    """Return why this text cannot be a name in tables and pages, as a clause; empty if it can."""
    if any(unicodedata.category(sign) in UNPRINTABLE or sign in BIDI for sign in text):
        return "holds a line break or another character that cannot be printed"
    if text != text.strip():
        return "begins or ends with a blank"
    if is_formula(text):
        return FORMULA
    return f"is longer than {LONGEST} bytes" if len(text.encode()) > LONGEST else ""


def safe_filename(name: str) -> str:
    """Return the name as a valid uid: '_' for invalid signs, a leading dot and the start of a formula."""
    signs = ("_" if sign in "/\\" + BIDI or unicodedata.category(sign) in UNPRINTABLE else sign for sign in name)
    named = "".join(signs).strip()
    return f"_{named[1:]}" if named.startswith(".") or is_formula(named) else named


def _check_required(rows: pd.DataFrame) -> None:
    for column in ("path", "patient_id", "split"):
        blank = rows.index[rows[column].isna() | (rows[column] == "")]
        if len(blank):
            raise InputError(f"uid {blank[0]}: {column} is blank{more(list(blank))}; fill it or drop the row")


def _check_patient_names(rows: pd.DataFrame) -> None:
    """Raise InputError for an id of a patient that could not be a cell of a table; it is not for logs itself."""
    wrong = {one for one in rows["patient_id"].unique() if text_problem(one.strip())}
    if wrong:
        uid, patient = next((uid, one) for uid, one in rows["patient_id"].items() if one in wrong)
        raise InputError(f"uid {uid}: patient_id {text_problem(patient.strip())}{more(wrong)}; give them other ids")


def _check_splits(rows: pd.DataFrame) -> None:
    wrong = rows.index[~rows["split"].isin(SPLITS)]
    if len(wrong):
        value = rows["split"].loc[wrong[0]]
        close = did_you_mean(str(value), SPLITS) or ";"
        raise InputError(f"uid {wrong[0]}: unknown split {value!r}{more(list(wrong))}{close} use {', '.join(SPLITS)}")


def _check_patients(rows: pd.DataFrame) -> None:
    pairs = rows[["patient_id", "split"]].drop_duplicates()
    torn = pairs["patient_id"][pairs["patient_id"].duplicated()].unique()
    if len(torn):
        where = " and ".join(sorted(pairs["split"][pairs["patient_id"] == torn[0]]))
        uid = rows.index[rows["patient_id"] == torn[0]][0]  # an id of a patient is not for logs
        raise InputError(f"the patient of uid {uid} is in splits {where}{more(list(torn))}; keep each in one split")


def _check_regions(rows: pd.DataFrame, findings: Sequence[str]) -> None:
    """Raise InputError for a column of masks or boxes whose finding is not among `findings`."""
    for name in (str(c) for c in rows.columns if c not in findings and c not in RESERVED):
        prefix = next((start for start in (MASK, BOX) if name.startswith(start)), None)
        if prefix is None or pd.api.types.is_numeric_dtype(rows[name]) or name.removeprefix(prefix) in findings:
            continue
        close = did_you_mean(name.removeprefix(prefix), findings) or ";"
        kind = "masks" if prefix == MASK else "boxes"
        raise InputError(
            f"column {name!r} would hold {kind} of a finding that the table does not have{close} use "
            f"{prefix}FINDING with one of {', '.join(findings)}"
        )


def is_synthetic(rows: pd.DataFrame) -> pd.Series:
    """Return which rows are synthetic, bool by the rows' index; a blank, or a table without the column, means real."""
    if "synthetic" not in rows:
        return pd.Series(False, rows.index)
    return rows["synthetic"].fillna(False).astype(bool)


def _check_labels(rows: pd.DataFrame, findings: Sequence[str]) -> None:
    soft = is_synthetic(rows)
    for finding in findings:
        values = rows[finding]
        wrong = values[~(values.isna() | values.isin((0.0, 1.0)) | (soft & values.between(0, 1)))]
        if len(wrong):
            problem = f"label {wrong.iloc[0]:g} is not 0, 1 or blank{more(wrong)}"
            raise InputError(f"finding {finding}, uid {wrong.index[0]}: {problem}; for -1 set 'uncertain'")
