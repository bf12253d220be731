"""Lists every file of a folder once, in a fixed order, without opening files; follows links only on request."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from medlt.remote import AnyFile, RemoteFile, listed
from medlt.types import InputError

STORES = frozenset({".git", ".dvc"})
"""Folders in which git-annex, datalad and DVC keep the files that their links point to."""


class FileEntry(NamedTuple):
    """A file: path `relative` to the folder, size in bytes and modification time in ns, which a resume compares.

    An object at a URL has a number that changes with its bytes in place of the time.

    `reason` says why the file is not opened, "" if it is. A member of a zip has the path of its `archive`, and its
    number there.
    """

    relative: str
    size: int
    changed: int
    reason: str = ""
    archive: str = ""
    member: int = 0


def scan(source: AnyFile, *, follow: bool = False, out: Path | None = None) -> Iterator[FileEntry]:
    """Yield every file at or below `source`, folder by folder in the order of names; of a URL, every object by name.

    With `follow`, links are followed, those to folders last, and every folder is listed once, by device and inode;
    STORES and the folder `out` are not. An unreadable folder or a broken link is yielded with the reason "missing".
    Raises InputError if `source` does not exist.
    """
    if isinstance(source, RemoteFile):
        for name, (size, version) in listed(source.url).items():
            yield FileEntry(name, size, version)
        return
    if not source.exists():
        raise InputError(f"{source.absolute()}: no such file or folder; check the path")
    if source.is_file():
        yield _entry(source.parent, source.name, follow)
        return
    seen = set() if out is None or not out.exists() else {_identity(out)}
    waiting, linked = [""], list[str]()
    while waiting or linked:
        inside = waiting.pop() if waiting else linked.pop(0)
        if follow and not _is_new(source, inside, seen):
            continue
        folders = []
        for name, kind in _entries(os.path.join(source, inside), follow):
            relative = f"{inside}/{name}" if inside else name
            if kind == "folder":
                folders.append(relative)
            elif kind == "link":
                linked.append(relative)
            else:
                yield _entry(source, relative, follow) if name else FileEntry(inside, -1, 0, "missing")
        waiting += reversed(folders)


def _entries(folder: str, follow: bool) -> list[tuple[str, str]]:
    """Return (name, kind) in order: folder, link (to a folder, if links are followed) or file.

    One entry without name if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, kind) for entry in entries if (kind := _kind(entry, follow)))
    except OSError:
        return [("", "file")]


def _kind(entry: os.DirEntry[str], follow: bool) -> str:
    """Return the kind of an entry, "" for a store that links point to."""
    if entry.is_dir(follow_symlinks=False):
        return "" if follow and entry.name in STORES else "folder"
    try:
        return "link" if follow and entry.is_dir() else "file"
    except OSError:  # a loop of links
        return "file"


def _is_new(source: Path, inside: str, seen: set[tuple[int, int]]) -> bool:
    """Return whether a folder was not listed before, and record it; True if its inode cannot be read."""
    try:
        place = _identity(source / inside)
    except OSError:
        return True
    known = place in seen
    seen.add(place)
    return not known


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _entry(root: Path, relative: str, follow: bool) -> FileEntry:
    try:
        status = os.stat(os.path.join(root, relative), follow_symlinks=follow)
    except OSError:
        return FileEntry(relative, -1, 0, "missing")
    reason = "" if stat.S_ISREG(status.st_mode) else "symlink"
    return FileEntry(relative, status.st_size, status.st_mtime_ns, reason)


def path_id(relative: str, key: bytes) -> str:
    """Return 12 hex digits for a source file in tables and logs, keyed if there is a key: its path may hold a name."""
    return hmac.new(key or b"medlt", os.fsencode(relative), hashlib.sha256).hexdigest()[:12]
