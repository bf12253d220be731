"""The one table everything reads: a row an image, keyed by uid, valid from birth.

Columns: `path`, `patient_id`, `split` (train, val or test), `view`, and one float column a finding: 1 present,
0 absent, NaN unknown. `content` names the bytes of the file (`medlt.files.digest_file`), where it is known. Rows whose
`synthetic` is True may hold soft labels in [0,1] and say `weight`, `parents` (a list of uids) and `method`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.columns import (
    REQUIRED,
    RESERVED,
    SPLITS,
    check,
    check_columns,
    more,
    normal,
    recorded_findings,
    uids_in,
    with_gaps,
)
from medlt.files import digest, digest_file, read_table, write_table
from medlt.types import InputError

__all__ = ["REQUIRED", "RESERVED", "SPLITS", "Manifest", "uids_in"]

READERS = 8


@dataclass(frozen=True)
class Manifest:
    """Rows indexed by uid, the finding columns among them, and the folder that relative paths start from.

    Building one checks everything but the files (`check_files` does that) and raises InputError with one line on a
    missing column, a repeated uid or one that cannot name a file, parents that are no list, a label other than 0, 1 and
    NaN, an unknown split, or a patient in two splits.
    """

    rows: pd.DataFrame
    findings: tuple[str, ...]
    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "root", Path(self.root))
        check_columns(self.rows, self.findings)
        object.__setattr__(self, "rows", normal(self.rows, self.findings))
        check(self.rows, self.findings)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.parquet; relative paths in it start from its folder. Raises InputError if it is not one."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such manifest; make one with 'medlt manifest'")
        try:
            rows = read_table(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as parquet: {str(error).splitlines()[0]}") from None
        if rows.index.name != "uid" and "uid" in rows.columns:
            rows = rows.set_index("uid")
        try:
            manifest = cls(rows, recorded_findings(rows), path.parent)
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
            raise InputError(f"finding {empty[0]} has no positive in split train{more(empty)}; drop it from 'findings'")

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
        raise InputError(f"{self._absolute(path)}: no such file (uid {uid}){more(gone)}; check root and path")

    def contents(self) -> dict[str, str]:
        """uid -> what names its file's bytes: the column `content`, or `medlt.files.digest_file` where that is blank.

        Raises InputError for a file that cannot be read.
        """
        known = self.rows["content"] if "content" in self.rows else pd.Series(None, self.rows.index, dtype=object)
        lacking = list(known.index[known.isna()])
        with ThreadPoolExecutor(READERS) as pool:
            read = dict(zip(lacking, pool.map(self._hashed, lacking), strict=True))
        return {uid: read[uid] if uid in read else str(value) for uid, value in known.items()}

    def _hashed(self, uid: str) -> str:
        try:
            return digest_file(self.file(uid))
        except OSError as error:
            raise InputError(f"{self.file(uid)}: {error.strerror} (uid {uid}); check root and path") from None

    def digest(self) -> str:
        """16 hex digits over uid, patient, split, the bytes of the image, weight and labels.

        Names of files and the order of rows do not matter; the order of findings does: label vectors have it.
        Raises InputError for a file that cannot be read where the column `content` does not say what it holds.
        """
        rows, contents = self.rows.sort_index(), self.contents()
        labels = rows[list(self.findings)].fillna(-1.0).to_numpy(np.float64) + 0.0
        weight = rows["weight"].fillna(1.0).to_numpy(np.float64) if "weight" in rows else np.ones(len(rows))
        held = [contents[uid] for uid in rows.index]
        text = [self.findings, list(rows.index), list(rows["patient_id"]), list(rows["split"]), held]
        return digest(text, labels.tobytes(), weight.tobytes())

    def join(self, other: Manifest) -> Manifest:
        """Both sets of rows under this root, checked anew; a finding that one side lacks is unknown there.

        A column of whole numbers that one side lacks keeps every digit: it becomes one that may have gaps.
        """
        theirs = other.rows.assign(path=[_portable(other._absolute(p), self._absolute("")) for p in other.rows["path"]])
        rows = pd.concat([with_gaps(self.rows, theirs), with_gaps(theirs, self.rows)])
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
