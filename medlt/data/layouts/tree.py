"""Which image files a folder holds, and which row each belongs to. Nothing is opened but files without an ending."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medlt.types import InputError

_ENDING = re.compile(r"\.(?:png|jpe?g|dcm|dicom)$", re.IGNORECASE)
_BARE = re.compile(r"(?:^|/)[^/.]+$|\.\d+$")  # IM000001, 1.2.840.1: how DICOM files without an ending are named
LABEL, IMAGE = "label_without_image", "image_without_label"


@dataclass(frozen=True)
class Placed:
    """`rows` with the path of each image below the root and `found`; files that belong to no row; what to tell."""

    rows: pd.DataFrame
    strangers: pd.DataFrame
    notes: tuple[str, ...] = ()


def listing(root: Path) -> list[str]:
    """Every visible file below `root`, sorted, relative and with '/'. Links to folders are not followed.

    Raises InputError if `root` is no folder or a folder in it cannot be read: its files would look like orphans.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path")

    def stop(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}; make the folder readable")

    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=stop):
        folders[:] = [f for f in folders if not f.startswith(".")]
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        head = "" if below == "." else f"{below}/"
        found += [head + f for f in files if not f.startswith(".")]
    return sorted(found)


def images(files: list[str], root: Path | None = None) -> pd.DataFrame:
    """Columns path, stem and plain of the PNG, JPEG and DICOM files, told by their ending, in the order given.

    A name that is no text is escaped, and not `plain`: no row can name that file.

    With `root`, files named as DICOM files without an ending are looked into for the DICM mark (PS3.10 section 7.1).
    """
    chosen = [f for f in files if _ENDING.search(f) or (root and _BARE.search(f) and _marked(root / f))]
    told = [f.encode("utf-8", "backslashreplace").decode() for f in chosen]  # a name need not be UTF-8, a table is
    paths = pd.Series(told, dtype="str")
    return pd.DataFrame(
        {"path": paths, "stem": stems(paths), "plain": [a == b for a, b in zip(told, chosen, strict=True)]}
    )


def stems(names: pd.Series) -> pd.Series:
    """File names without folder and image ending; any other dot stays, as in a UID."""
    return names.str.rsplit("/", n=1).str[-1].str.replace(_ENDING, "", regex=True)


def by_stem(rows: pd.DataFrame, files: pd.DataFrame) -> Placed:
    """Give each row the file whose stem is its uid: the one at the row's own path, else the first by path."""
    first = files.drop_duplicates("stem").set_index("stem")["path"]
    path = rows["path"].where(rows["path"].isin(files["path"]), rows.index.to_series().map(first))
    placed = rows.assign(path=path.fillna(rows["path"]), found=path.notna())
    twins = files.loc[files["stem"].duplicated() & files["stem"].isin(rows.index), "stem"].nunique()
    told = f"{twins} image(s) lie at more than one place; the published path, else the first by name, was taken"
    return Placed(placed, files[~files["stem"].isin(rows.index)], (told,) if twins else ())


def by_path(rows: pd.DataFrame, files: pd.DataFrame, root: Path) -> Placed:
    """Look each row's path up, relative to `root` or absolute."""
    base = str(root.absolute()).rstrip(os.sep) + os.sep
    near = rows["path"].str.removeprefix(base).str.removeprefix("./")
    known = set(files.loc[files["plain"].astype(bool), "path"])
    found = [p in known or os.path.isfile(os.path.join(base, p)) for p in near.fillna("?")]
    return Placed(rows.assign(path=near, found=found), files[~files["path"].isin(near)])


def orphans(placed: Placed) -> pd.DataFrame:
    """Columns kind, uid, path: rows without their file, then files without a row."""
    lost = placed.rows[~placed.rows["found"]]
    labels = pd.DataFrame({"kind": LABEL, "uid": lost.index, "path": lost["path"].to_numpy()})
    strangers = placed.strangers
    files = pd.DataFrame({"kind": IMAGE, "uid": strangers["stem"], "path": strangers["path"]})
    return pd.concat([labels.astype("str"), files.astype("str")], ignore_index=True)


def _marked(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False
