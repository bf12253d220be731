"""What a folder holds: every file once, in one order, links not followed, nothing opened."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from medlt.types import InputError


class Found(NamedTuple):
    """A file: `relative` to the folder, its size in bytes and time in ns, which a resume compares."""

    relative: str
    size: int
    changed: int
    link: bool


def scan(source: Path) -> Iterator[Found]:
    """Every file at or below `source`, folder by folder in the order of names; a folder that cannot be read comes as a
    file of size -1. Raises InputError if `source` is not there."""
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check the path")
    if source.is_file():
        yield _found(source.parent, source.name)
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
                yield _found(source, relative)
            else:
                yield Found(inside, -1, 0, False)
        waiting += reversed(folders)


def _entries(folder: str) -> list[tuple[str, bool]]:
    """(name, whether a folder) in order; one nameless entry if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return [("", False)]


def _found(root: Path, relative: str) -> Found:
    try:
        told = os.lstat(os.path.join(root, relative))
    except OSError:
        return Found(relative, -1, 0, False)
    plain = stat.S_ISREG(told.st_mode)
    return Found(relative, told.st_size, told.st_mtime_ns, not plain)


def path_id(relative: str, key: bytes) -> str:
    """12 hex digits that name a source file in tables and logs: its path may hold a name. Under the key, if any."""
    return hmac.new(key or b"medlt", os.fsencode(relative), hashlib.sha256).hexdigest()[:12]
