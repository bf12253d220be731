"""Lists the image files of a folder and matches them to rows. Only files without a suffix are opened."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medlt.remote import AnyFile, RemoteFile, are_files, is_url, listed
from medlt.types import InputError

_SUFFIX = re.compile(r"\.(?:png|jpe?g|dcm|dicom)$", re.IGNORECASE)
_BARE = re.compile(r"(?:^|/)[^/.]+$|\.\d+$")  # IM000001, 1.2.840.1: names of DICOM files without a suffix
LABEL, IMAGE, BOX = "label_without_image", "image_without_label", "box_without_image"
KINDS = (LABEL, IMAGE, BOX)


@dataclass(frozen=True)
class MatchedImages:
    """`rows` with `path` below the root and `exists`; `unmatched`: files that belong to no row; `notes`."""

    rows: pd.DataFrame
    unmatched: pd.DataFrame
    notes: tuple[str, ...] = ()


def listing(root: AnyFile) -> list[str]:
    """Return every visible file below `root`, a folder or a URL, sorted, relative and with '/'.

    Links to folders are followed, such as p10 to p19 of MIMIC-CXR on another disk, but not back to a folder around
    `root` or to one that is listed without the link. Raises InputError if `root` is not a folder, or if a folder in it
    cannot be read; of a URL as `listed`.
    """
    if isinstance(root, RemoteFile):
        return [name for name in listed(root.url) if not any(part.startswith(".") for part in name.split("/"))]
    if not root.is_dir():
        raise InputError(f"{root.absolute()}: no such folder; check the path")
    top = os.path.realpath(root)
    paths, links, entered = *_walked(root, ""), {top}
    while links:
        link = links.pop(0)
        target = os.path.realpath(root / link)
        if _covers(target, top) or any(_covers(one, target) for one in entered):
            continue
        entered.add(target)
        more, further = _walked(root / link, f"{link}/")
        paths, links = paths + more, links + further
    return sorted(paths)


def paths(root: AnyFile, files: list[str]) -> list[Path]:
    """Return the paths of files on this machine; none of those at a URL, where no table is read."""
    return [root / file for file in files] if isinstance(root, Path) else []


def _covers(folder: str, path: str) -> bool:
    """Return whether a listing of `folder` has what is below `path`: it does not enter hidden folders."""
    below = os.path.relpath(path, folder).split(os.sep)
    return below == ["."] or not any(part.startswith(".") for part in below)


def _walked(root: Path, head: str) -> tuple[list[str], list[str]]:
    """Return the files and the links to folders below `root`, named by `head` and their place in it."""
    paths: list[str] = []
    links: list[str] = []
    folders = [(str(root), head)]
    while folders:
        folder, here = folders.pop()
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            raise InputError(f"{os.path.abspath(folder)}: {error.strerror}; make the folder readable") from None
        for entry in sorted(entries, key=lambda one: one.name):
            if not _is_folder(entry):
                paths.append(here + entry.name)
            elif entry.is_symlink():
                links.append(here + entry.name)
            else:
                folders.append((entry.path, f"{here}{entry.name}/"))
    return paths, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def images(files: list[str], root: AnyFile | None = None) -> pd.DataFrame:
    """Return columns path, stem and plain of the PNG, JPEG and DICOM files, by their suffix, in the order given.

    A file name that is not valid text is escaped and not `plain`: no row can name that file. With `root`, files with
    typical names of DICOM files without a suffix are checked for the DICM mark (PS3.10 section 7.1); at a URL a suffix
    is needed.
    """
    local = root if isinstance(root, Path) else None
    chosen = [f for f in files if _SUFFIX.search(f) or (local and _BARE.search(f) and _marked(local / f))]
    escaped = [f.encode("utf-8", "backslashreplace").decode() for f in chosen]  # tables are UTF-8, names may not be
    paths = pd.Series(escaped, dtype="str")
    plain = [a == b for a, b in zip(escaped, chosen, strict=True)]
    return pd.DataFrame({"path": paths, "stem": stems(paths), "plain": plain})


def without(files: pd.DataFrame, masks: pd.DataFrame) -> pd.DataFrame:
    """Return the files that no column of `masks` names."""
    named = {os.path.normpath(path) for name in masks for path in masks[name].dropna().astype(str)}
    return files[~files["path"].isin(named)]


def stems(names: pd.Series) -> pd.Series:
    """Return file names without folder and image suffix; other dots stay, as in a UID."""
    return names.str.rsplit("/", n=1).str[-1].str.replace(_SUFFIX, "", regex=True)


def by_stem(rows: pd.DataFrame, files: pd.DataFrame) -> MatchedImages:
    """Match each row to the file whose stem is its uid: the one at the row's own path, else the first by path."""
    first = files.drop_duplicates("stem").set_index("stem")["path"]
    path = rows["path"].where(rows["path"].isin(files["path"]), rows.index.to_series().map(first))
    matched = rows.assign(path=path.fillna(rows["path"]), exists=path.notna())
    repeated = files.loc[files["stem"].duplicated() & files["stem"].isin(rows.index), "stem"].nunique()
    note = f"{repeated} image(s) occur more than once; the published path, else the first by name, is used"
    return MatchedImages(matched, files[~files["stem"].isin(rows.index)], (note,) if repeated else ())


def by_path(rows: pd.DataFrame, files: pd.DataFrame, root: AnyFile) -> MatchedImages:
    """Match each row to the file at its path, relative to `root` or absolute, or at its URL."""
    base = f"{root.url.rstrip('/')}/" if isinstance(root, RemoteFile) else str(root.absolute()).rstrip(os.sep) + os.sep
    near = rows["path"].str.removeprefix(base).str.removeprefix("./")
    known = set(files.loc[files["plain"].astype(bool), "path"])
    others = [p for p in near.fillna("?").unique() if p not in known]
    there = are_files([p if is_url(p) else os.path.join(base, p) for p in others])
    known |= {p for p, exists in zip(others, there, strict=True) if exists}
    exists = near.fillna("?").isin(known).to_numpy()
    return MatchedImages(rows.assign(path=near, exists=exists), files[~files["path"].isin(near)])


def orphans(matched: MatchedImages) -> pd.DataFrame:
    """Return columns kind, uid, path: rows without their file, then files without a row."""
    lost = matched.rows[~matched.rows["exists"]]
    labels = pd.DataFrame({"kind": LABEL, "uid": lost.index, "path": lost["path"].to_numpy()})
    unmatched = matched.unmatched
    files = pd.DataFrame({"kind": IMAGE, "uid": unmatched["stem"], "path": unmatched["path"]})
    return pd.concat([labels.astype("str"), files.astype("str")], ignore_index=True)


def _marked(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False
