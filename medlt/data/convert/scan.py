"""Lists every file of a folder once, in a fixed order, without following links or opening files."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from medlt.types import InputError


class FileEntry(NamedTuple):
    """A file: path `relative` to the folder, size in bytes and modification time in ns, which a resume compares."""

    relative: str
    size: int
    changed: int
    link: bool


def scan(source: Path) -> Iterator[FileEntry]:
    """Yield every file at or below `source`, folder by folder in the order of names.

    An unreadable folder is yielded as a file of size -1. Raises InputError if `source` does not exist.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source.absolute()}: no such file or folder; check the path")
    if source.is_file():
        yield _entry(source.parent, source.name)
        return
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        folders = []
        for name, folder in _entries(os.path.join(source, inside)):
            relative = f"{inside}/{name}" if inside else name
            if folder:
                folders.append(relative)
            elif name:
                yield _entry(source, relative)
            else:
                yield FileEntry(inside, -1, 0, False)
        waiting += reversed(folders)


def _entries(folder: str) -> list[tuple[str, bool]]:
    """Return (name, whether a folder) in order; one entry without name if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return [("", False)]


def _entry(root: Path, relative: str) -> FileEntry:
    try:
        status = os.lstat(os.path.join(root, relative))
    except OSError:
        return FileEntry(relative, -1, 0, False)
    plain = stat.S_ISREG(status.st_mode)
    return FileEntry(relative, status.st_size, status.st_mtime_ns, not plain)


def path_id(relative: str, key: bytes) -> str:
    """Return 12 hex digits for a source file in tables and logs, keyed if there is a key: its path may hold a name."""
    return hmac.new(key or b"medlt", os.fsencode(relative), hashlib.sha256).hexdigest()[:12]
