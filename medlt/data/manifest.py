"""The one table everything reads: a row an image, keyed by uid, valid from birth.

Columns: `path`, `patient_id`, `split` (train, val or test), `view`, and one float column a finding: 1 present,
0 absent, NaN unknown. Rows whose `synthetic` is True may hold soft labels in [0,1] and say `weight`, `parents` (uids
joined by a blank) and `method`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.files import digest, write_table
from medlt.types import InputError

SPLITS = ("train", "val", "test")
REQUIRED = ("path", "patient_id", "split", "view")
RESERVED = frozenset((*REQUIRED, "uid", "sex", "age", "synthetic", "weight", "parents", "method"))


@dataclass(frozen=True)
class Manifest:
    """Rows indexed by uid, the finding columns among them, and the folder that relative paths start from.

    Building one checks everything but the files (`check_files` does that) and raises InputError with one line on a
    missing column, a repeated uid, a label other than 0, 1 and NaN, an unknown split, or a patient in two splits.
    """

    rows: pd.DataFrame
    findings: tuple[str, ...]
    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "root", Path(self.root))
        _check_columns(self.rows, self.findings)
        object.__setattr__(self, "rows", _normal(self.rows, self.findings))
        for check in (_check_uids, _check_required, _check_splits, _check_patients):
            check(self.rows)
        _check_labels(self.rows, self.findings)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.parquet; relative paths in it start from its folder. Raises InputError if it is not one."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such manifest; make one with 'medlt manifest'")
        try:
            rows = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as parquet: {str(error).splitlines()[0]}") from None
        if rows.index.name != "uid" and "uid" in rows.columns:
            rows = rows.set_index("uid")
        try:
            manifest = cls(rows, _recorded_findings(rows), path.parent)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if not len(manifest.rows):
            raise InputError(f"{path}: the manifest has no row; check the source it was made from")
        return manifest

    def write(self, path: Path) -> None:
        """Write as parquet, whole or not at all. Paths inside the file's folder become relative to it."""
        path = Path(path)
        folder = str(path.parent.absolute())
        rows = self.rows.assign(path=[_portable(self._absolute(p), folder) for p in self.rows["path"]])
        rows.attrs = {"findings": list(self.findings)}
        write_table(path, rows)

    def split(self, name: str) -> Manifest:
        """The rows of one split; raises InputError on an unknown name."""
        if name not in SPLITS:
            raise InputError(f"unknown split {name!r}; use one of {', '.join(SPLITS)}")
        return self.where(self.rows["split"] == name)

    def where(self, mask: pd.Series) -> Manifest:
        """The rows whose uid is True in `mask`, in this manifest's order; every uid must be in the mask."""
        chosen = mask.loc[self.rows.index].astype(bool)
        return Manifest(self.rows[chosen], self.findings, self.root)

    def file(self, uid: str) -> Path:
        """Where the image of `uid` lies."""
        return Path(self.root) / str(self.rows.at[uid, "path"])

    def labels(self, uids: Sequence[str] | None = None) -> np.ndarray:
        """float32 [N,K], NaN unknown, in the order of `uids` (default: of the rows)."""
        rows = self.rows if uids is None else self.rows.loc[list(uids)]
        values: np.ndarray = rows[list(self.findings)].to_numpy(np.float32)
        return values

    def counts(self) -> pd.DataFrame:
        """Index finding; columns positive, negative, unknown. A soft label counts as positive from 0.5 on."""
        values = self.rows[list(self.findings)]
        return pd.DataFrame(
            {"positive": (values >= 0.5).sum(), "negative": (values < 0.5).sum(), "unknown": values.isna().sum()}
        ).rename_axis("finding")

    def tail(self, below: int) -> tuple[str, ...]:
        """Findings with fewer than `below` positives among these rows; the no-finding column never counts."""
        positive = self.counts()["positive"]
        return tuple(f for f in self.findings if positive[f] < below and f != self.no_finding)

    def require_positives(self) -> None:
        """Raise InputError if the train split has no row, or a finding without a positive there."""
        train = self.split("train")
        if not len(train.rows):
            raise InputError("split train has no row; check the split column")
        positive = train.counts()["positive"]
        empty = [f for f in self.findings if positive[f] == 0]
        if empty:
            raise InputError(
                f"finding {empty[0]} has no positive in split train{_more(empty)}; drop it from 'findings'"
            )

    def check_files(self) -> None:
        """Raise InputError naming the first missing file, and how many are missing."""
        gone = [(uid, p) for uid, p in self.rows["path"].items() if not os.path.isfile(self._absolute(p))]
        if not gone:
            return
        root = Path(self.root)
        if len(gone) == len(self.rows) and not (root.is_dir() and any(root.iterdir())):
            state = "is empty" if root.is_dir() else "does not exist"
            raise InputError(f"{root}: the image folder {state}; point the data's root at the images")
        uid, path = gone[0]
        raise InputError(f"{self._absolute(path)}: no such file (uid {uid}){_more(gone)}; check root and path")

    def digest(self) -> str:
        """16 hex digits over uid, patient, split, file name, weight and labels; the order of rows does not matter.

        The order of findings does: it is the order of every label vector.
        """
        rows = self.rows.sort_index()
        names = [os.path.basename(p) for p in rows["path"]]
        labels = rows[list(self.findings)].fillna(-1.0).to_numpy(np.float64) + 0.0
        weight = rows["weight"].fillna(1.0).to_numpy(np.float64) if "weight" in rows else np.ones(len(rows))
        text = [self.findings, list(rows.index), list(rows["patient_id"]), list(rows["split"]), names]
        return digest(text, labels.tobytes(), weight.tobytes())

    def join(self, other: Manifest) -> Manifest:
        """Both sets of rows under this root, checked anew; a finding that one side lacks is unknown there."""
        theirs = other.rows.assign(path=[_portable(other._absolute(p), self._absolute("")) for p in other.rows["path"]])
        rows = pd.concat([self.rows, theirs])
        for column, default in (("synthetic", False), ("weight", 1.0)):
            if column in rows:
                rows[column] = rows[column].astype(object).where(rows[column].notna(), default).astype(type(default))
        return Manifest(rows, tuple(dict.fromkeys((*self.findings, *other.findings))), self.root)

    @property
    def no_finding(self) -> str | None:
        """The column that says nothing was found, if there is one; CXR-LT 2024 calls it Normal."""
        same = (f for f in self.findings if f.lower().replace("_", "").replace(" ", "") in ("nofinding", "normal"))
        return next(same, None)

    def _absolute(self, path: str) -> str:
        return os.path.join(os.path.abspath(self.root), path)


def _portable(path: str, folder: str) -> str:
    """`path` relative to `folder` when inside it, else as it is."""
    folder = folder.rstrip(os.sep) + os.sep
    return path.removeprefix(folder).replace(os.sep, "/")


def _more(items: Sized) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def _recorded_findings(rows: pd.DataFrame) -> tuple[str, ...]:
    """As written by `Manifest.write`; in a table made elsewhere, every number column that has no other meaning."""
    if recorded := rows.attrs.get("findings"):
        return tuple(recorded)
    numbers = rows.select_dtypes("number").columns
    return tuple(str(c) for c in numbers if c not in RESERVED)


def _normal(rows: pd.DataFrame, findings: tuple[str, ...]) -> pd.DataFrame:
    """Text keys as str, findings as float64; raises InputError on a label that is no number."""
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
    return rows


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


def _check_columns(rows: pd.DataFrame, findings: tuple[str, ...]) -> None:
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
            f"missing column {missing[0]}{_more(missing)}; the table has {', '.join(map(str, rows.columns))}"
        )


def _check_uids(rows: pd.DataFrame) -> None:
    repeated = rows.index[rows.index.duplicated()].unique()
    if len(repeated):
        raise InputError(f"uid {repeated[0]} appears more than once{_more(list(repeated))}; every image needs its own")
    if (rows.index == "").any():
        raise InputError("a row has an empty uid; give every image one")


def _check_required(rows: pd.DataFrame) -> None:
    for column in ("path", "patient_id", "split"):
        blank = rows.index[rows[column].isna() | (rows[column] == "")]
        if len(blank):
            raise InputError(f"uid {blank[0]}: {column} is blank{_more(list(blank))}; fill it or drop the row")


def _check_splits(rows: pd.DataFrame) -> None:
    wrong = rows.index[~rows["split"].isin(SPLITS)]
    if len(wrong):
        value = rows["split"].loc[wrong[0]]
        raise InputError(f"uid {wrong[0]}: unknown split {value!r}{_more(list(wrong))}; use {', '.join(SPLITS)}")


def _check_patients(rows: pd.DataFrame) -> None:
    pairs = rows[["patient_id", "split"]].drop_duplicates()
    torn = pairs["patient_id"][pairs["patient_id"].duplicated()].unique()
    if len(torn):
        where = " and ".join(sorted(pairs["split"][pairs["patient_id"] == torn[0]]))
        uid = rows.index[rows["patient_id"] == torn[0]][0]  # an id of a patient is not for logs
        raise InputError(f"the patient of uid {uid} is in splits {where}{_more(list(torn))}; keep each in one split")


def _check_labels(rows: pd.DataFrame, findings: tuple[str, ...]) -> None:
    soft = rows["synthetic"].fillna(False).astype(bool) if "synthetic" in rows else pd.Series(False, rows.index)
    for finding in findings:
        values = rows[finding]
        wrong = values[~(values.isna() | values.isin((0.0, 1.0)) | (soft & values.between(0, 1)))]
        if len(wrong):
            told = f"label {wrong.iloc[0]:g} is not 0, 1 or blank{_more(wrong)}"
            raise InputError(f"finding {finding}, uid {wrong.index[0]}: {told}; see 'uncertain' for -1")
