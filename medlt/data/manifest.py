"""The table of a collection: one row per image, indexed by uid, validated on construction.

Columns: `path` (or a URL, see `medlt.remote`), `patient_id`, `split` (train, val or test), `view`, and one float column
per finding: 1 present, 0 absent, NaN unknown. `content` is the digest of the file's bytes (`medlt.files.digest_file`),
or blank. Rows whose `synthetic` is True may hold soft labels in [0,1], and `weight`, `parents` (a list of uids) and
`method`. `mask_FINDING` and `box_FINDING` say where a finding is, see `medlt.data.regions`; `mask_content` is the
digest of the row's mask files, or blank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.columns import (
    BOX,
    MASK,
    REQUIRED,
    RESERVED,
    SIDE,
    SPLITS,
    check,
    check_columns,
    more,
    normalize,
    recorded_findings,
    region_columns,
    uids_in,
    with_nullable_integers,
)
from medlt.data.mask_files import digest_mask_files
from medlt.files import digest, read_table, write_table, write_table_parts
from medlt.names import did_you_mean, no_finding
from medlt.remote import AnyFile, are_files, as_file, digest_of, is_url, require_local
from medlt.types import InputError

__all__ = ["REQUIRED", "RESERVED", "SPLITS", "Manifest", "uids_in"]

READERS = 8


@dataclass(frozen=True, eq=False)
class Manifest:
    """Rows indexed by uid, the names of the finding columns, and the folder that relative paths start from.

    The constructor checks everything but the files (see `check_files`). It raises InputError, in one line, on a missing
    column, a repeated uid, a uid that cannot be a file name, parents that are not a list, a label other than 0, 1 and
    NaN, an unknown split, or a patient in two splits.
    """

    rows: pd.DataFrame
    findings: tuple[str, ...]
    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        object.__setattr__(self, "root", Path(self.root))
        check_columns(self.rows, self.findings)
        object.__setattr__(self, "rows", normalize(self.rows, self.findings))
        check(self.rows, self.findings)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.parquet, a file or folder of parts; paths start from its folder. Raises InputError."""
        path = Path(path)
        if not path.exists():
            require_local(path)
            raise InputError(f"{path.absolute()}: no such manifest; check the path, or make one with `medlt manifest`")
        try:
            rows = read_table(path)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):  # a part of the table is missing
                raise
            raise InputError(f"{path}: not readable as parquet; restore it from a copy, or make it again") from None
        if rows.index.name != "uid" and "uid" in rows.columns:
            rows = rows.set_index("uid")
        try:
            manifest = cls(rows, recorded_findings(rows), path.parent)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if not len(manifest.rows):
            raise InputError(f"{path}: the manifest has no row; check the table it was made from")
        return manifest

    def write(self, path: Path, part_rows: int | None = None) -> None:
        """Write as parquet, atomically. Paths inside the file's folder become relative to it.

        With `part_rows`, `path` is a folder of parts of this many rows (`medlt.files.write_table_parts`).
        """
        path = Path(path)
        folder = str(path.parent.absolute())
        rows = self.moved(lambda path: _portable(self._absolute(path), folder))
        rows.attrs = {"findings": list(self.findings)}
        write_table(path, rows) if part_rows is None else write_table_parts(path, rows, part_rows)

    def split(self, name: str) -> Manifest:
        """Return the rows of one split. Raises InputError on an unknown name."""
        if name not in SPLITS:
            raise InputError(f"unknown split {name!r}{did_you_mean(name, SPLITS) or ';'} use {', '.join(SPLITS)}")
        return self.where(self.rows["split"] == name)

    def where(self, mask: pd.Series) -> Manifest:
        """Return the rows whose uid is True in `mask`, in this manifest's order; every uid must be in the mask."""
        chosen = mask.loc[self.rows.index].astype(bool)
        return Manifest(self.rows[chosen], self.findings, self.root)

    def file(self, uid: str) -> AnyFile:
        """Return the file of the image of `uid`: a path, or a file at a URL."""
        return as_file(self._absolute(str(self.rows.at[uid, "path"])))

    def local_file(self, uid: str) -> Path:
        """Return the path of the image of `uid` on this machine. Raises InputError for one at a URL."""
        if isinstance(file := self.file(uid), Path):
            return file
        raise InputError(f"{file}: is at a URL (uid {uid}), and this needs a file; copy it to this machine")

    def labels(self, uids: Sequence[str] | None = None) -> np.ndarray:
        """Return labels, float32 [N,K], NaN unknown, in the order of `uids` (default: of the rows)."""
        rows = self.rows if uids is None else self.rows.loc[list(uids)]
        values: np.ndarray = rows[list(self.findings)].to_numpy(np.float32, copy=True)
        return values

    def counts(self) -> pd.DataFrame:
        """Return one row per finding: positive, negative, unknown. Soft labels of 0.5 or more are positive."""
        values = self.rows[list(self.findings)]
        return pd.DataFrame(
            {"positive": (values >= 0.5).sum(), "negative": (values < 0.5).sum(), "unknown": values.isna().sum()}
        ).rename_axis("finding")

    def tail(self, below: int) -> tuple[str, ...]:
        """Return the findings with fewer than `below` positive rows, without the no-finding column."""
        positive = self.counts()["positive"]
        return tuple(f for f in self.findings if positive[f] < below and f != self.no_finding)

    def require_positives(self) -> None:
        """Raise InputError if the train split has no row, or no positive row of a finding."""
        train = self.split("train")
        if not len(train.rows):
            raise InputError("split train has no row; check the split column")
        positive = train.counts()["positive"]
        empty = [f for f in self.findings if positive[f] == 0]
        if empty:
            message = f"finding {empty[0]} has no positive image in split train{more(empty)}"
            raise InputError(f"{message}; drop it from 'findings'")

    def check_files(self) -> None:
        """Raise InputError with the first missing file and the number of missing files; masks come after images."""
        self._check_images()
        masks = [(uid, finding, file) for uid, row in self.masks().items() for finding, file in row.items()]
        if missing := [one for one in masks if not one[2].is_file()]:
            uid, finding, file = missing[0]
            what = f"no such mask of {finding} (uid {uid}){more(missing)}"
            raise InputError(f"{file.absolute()}: {what}; check the column {MASK}{finding}, or leave it blank")

    def _check_images(self) -> None:
        there = are_files([self._absolute(path) for path in self.rows["path"]])
        missing = [
            (uid, path) for (uid, path), known in zip(self.rows["path"].items(), there, strict=True) if not known
        ]
        if not missing:
            return
        root = Path(self.root).absolute()
        if len(missing) == len(self.rows) and not (root.is_dir() and any(root.iterdir())):
            state = "is empty" if root.is_dir() else "does not exist"
            raise InputError(f"{root}: the image folder {state}; set the data's root to the folder of the images")
        uid, path = missing[0]
        place = as_file(self._absolute(path))
        raise InputError(f"{place}: no such file (uid {uid}){more(missing)}; check root and path")

    def contents(self) -> dict[str, str]:
        """Return uid -> digest of the file's bytes: the column `content`, or `medlt.files.digest_file` if blank.

        Raises InputError for a file that cannot be read.
        """
        known = self.rows["content"] if "content" in self.rows else pd.Series(None, self.rows.index, dtype=object)
        lacking = list(known.index[known.isna()])
        with ThreadPoolExecutor(READERS) as pool:
            read = dict(zip(lacking, pool.map(self._hashed, lacking), strict=True))
        return {uid: read[uid] if uid in read else str(value) for uid, value in known.items()}

    def masks(self) -> dict[str, dict[str, AnyFile]]:
        """Return uid -> finding -> mask file, for the rows that have one."""
        files: dict[str, dict[str, AnyFile]] = {}
        for finding, name in region_columns(self.rows, self.findings, MASK).items():
            for uid, path in self.rows[name].dropna().items():
                files.setdefault(str(uid), {})[finding] = as_file(self._absolute(path))
        return files

    def mask_contents(self) -> dict[str, str]:
        """Return uid -> digest of the bytes of the row's mask files, for the rows that have one.

        It is the column `mask_content`, or computed if that is blank. Raises InputError for a file that cannot be read.
        """
        masks = self.masks()
        known = self.rows["mask_content"].dropna() if "mask_content" in self.rows else pd.Series(dtype=object)
        lacking = [uid for uid in masks if uid not in known.index]
        with ThreadPoolExecutor(READERS) as pool:
            read = dict(zip(lacking, pool.map(lambda uid: digest_mask_files(uid, masks[uid]), lacking), strict=True))
        return {uid: read[uid] if uid in read else str(known[uid]) for uid in masks}

    def with_mask_contents(self) -> Manifest:
        """Return the rows with the column `mask_content` of the mask files as they are now; unchanged without masks."""
        fresh = Manifest(self.rows.drop(columns="mask_content", errors="ignore"), self.findings, self.root)
        if not (contents := fresh.mask_contents()):
            return fresh
        column = pd.Series([contents.get(uid) for uid in fresh.rows.index], fresh.rows.index, dtype=object)
        return Manifest(fresh.rows.assign(mask_content=column), self.findings, self.root)

    def with_findings(self, findings: Sequence[str]) -> Manifest:
        """Return the rows with these findings in this order: others are left out, missing ones are unknown."""
        others = [name for name in self.findings if name not in findings]
        regions = {f"{kind}{name}" for kind in (MASK, BOX, SIDE) for name in others} - set(self.findings)
        missing = {name: np.nan for name in findings if name not in self.findings}
        rows = self.rows.drop(columns=[*others, *regions.intersection(self.rows.columns)]).assign(**missing)
        return Manifest(rows, tuple(findings), self.root)

    def without_regions(self) -> Manifest:
        """Return the rows without the columns of masks, boxes and sides."""
        kinds = (region_columns(self.rows, self.findings, kind).values() for kind in (MASK, BOX, SIDE))
        columns = [name for names in kinds for name in names]
        rows = self.rows.drop(columns=[*columns, "mask_content"], errors="ignore")
        return Manifest(rows, self.findings, self.root)

    def __repr__(self) -> str:
        patients = self.rows["patient_id"].nunique()
        return f"Manifest({len(self.rows)} images of {patients} patients, {len(self.findings)} findings)"

    def _hashed(self, uid: str) -> str:
        try:
            return digest_of(self.file(uid))
        except OSError as error:
            place, reason = self.file(uid).absolute(), error.strerror or "no such object"
            raise InputError(f"{place}: {reason} (uid {uid}); check root and path") from None

    def digest(self) -> str:
        """Return 16 hex digits over uid, patient, split, bytes of image and masks, boxes, weight and labels.

        File names and the order of rows do not change it; the order of findings does, as it is that of label vectors.
        Raises InputError for a file that cannot be read if the column `content` is blank.
        """
        rows, contents = self.rows.sort_index(), self.contents()
        labels = rows[list(self.findings)].fillna(-1.0).to_numpy(np.float64) + 0.0
        weight = rows["weight"].fillna(1.0).to_numpy(np.float64) if "weight" in rows else np.ones(len(rows))
        files = [contents[uid] for uid in rows.index]
        text = [self.findings, list(rows.index), list(rows["patient_id"]), list(rows["split"]), files]
        return digest(text, labels.tobytes(), weight.tobytes(), *self._regions())

    def join(self, other: Manifest) -> Manifest:
        """Return both sets of rows under this root, validated; a finding that one side lacks is unknown there.

        An integer column that one side lacks becomes a nullable integer column, so that no digit is lost.
        """
        here = self._absolute("")
        theirs = other.moved(lambda path: _portable(other._absolute(path), here))
        rows = pd.concat([with_nullable_integers(self.rows, theirs), with_nullable_integers(theirs, self.rows)])
        for column, default in (("synthetic", False), ("weight", 1.0)):
            if column in rows:
                rows[column] = rows[column].astype(object).where(rows[column].notna(), default).astype(type(default))
        return Manifest(rows, tuple(dict.fromkeys((*self.findings, *other.findings))), self.root)

    @property
    def no_finding(self) -> str | None:
        """Return the name of the no-finding column, or None; see `medlt.names.no_finding`."""
        return no_finding(self.findings)

    def absolute(self) -> pd.DataFrame:
        """Return the rows with absolute paths of images and masks."""
        return self.moved(self._absolute)

    def moved(self, change: Callable[[str], str]) -> pd.DataFrame:
        """Return the rows with every path of an image or a mask changed."""
        rows = self.rows.assign(path=[change(path) for path in self.rows["path"]])
        for name in region_columns(rows, self.findings, MASK).values():
            moved = [change(path) if isinstance(path, str) else None for path in rows[name]]
            rows[name] = pd.Series(moved, rows.index, dtype=object)
        return rows

    def _regions(self) -> tuple[object, ...]:
        """Return what a digest needs to know of masks and boxes; nothing if there are none."""
        boxes = {
            finding: self.rows[name].dropna().sort_index().to_dict()
            for finding, name in region_columns(self.rows, self.findings, BOX).items()
        }
        known = [self.mask_contents(), {finding: rows for finding, rows in boxes.items() if rows}]
        return tuple(known) if any(known) else ()

    def _absolute(self, path: str) -> str:
        return path if is_url(path) else os.path.join(os.path.abspath(self.root), path)


def _portable(path: str, folder: str) -> str:
    """Return `path` relative to `folder` if it is inside, else unchanged."""
    folder = folder.rstrip(os.sep) + os.sep
    return path.removeprefix(folder).replace(os.sep, "/")
