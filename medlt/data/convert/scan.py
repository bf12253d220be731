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
    """Every file at or below `source`, folder by folder in the order of names. Raises InputError if it is not there."""
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check the path")
    if source.is_file():
        yield _found(source.parent, source.name)
        return
    yield from _below(str(source), "")


def _below(root: str, inside: str) -> Iterator[Found]:
    try:
        with os.scandir(os.path.join(root, inside)) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        yield Found(inside, -1, 0, False)
        return
    for name, folder in names:
        relative = f"{inside}/{name}" if inside else name
        if folder:
            yield from _below(root, relative)
        else:
            yield _found(Path(root), relative)


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
