"""Whether a file changed since it was read: its size, times and inode, or what a server says of an object."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from medlt.files import write_table
from medlt.remote import RemoteFile, as_file, in_parallel, is_url

RACY_NS = 2 * 10**9
"""A file that changed this shortly before the read is read again: its times may not show the next change."""
STATE = ["path", "size", "mtime_ns", "ctime_ns", "inode"]
State = tuple[str, int, int, int, int]


def states_of(paths: Collection[str]) -> list[State | None]:
    """Return `state_of` of each; of URLs many are requested at a time."""
    urls = [path for path in paths if is_url(path)]
    known = dict(zip(urls, in_parallel(state_of, urls), strict=True))
    return [known[path] if path in known else state_of(path) for path in paths]


def state_of(path: str) -> State | None:
    """Return path, size, times and inode, which show whether a file changed; None if there is no file.

    Of a URL: the URL, the size, and in place of the inode the version that the server gives.
    """
    if isinstance(file := as_file(path), RemoteFile):
        known = file.state()
        return known and (path, known[0], 0, 0, known[1])
    try:
        status = os.stat(path)
    except OSError:
        return None
    return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def remembered_contents(table: Path) -> dict[State, str]:
    """Return the digests of files by state; empty if the table is missing or damaged: files are then read again."""
    try:
        rows = pd.read_parquet(table, columns=[*STATE, "content"])
    except (OSError, ValueError, KeyError):
        return {}
    return {tuple(state): str(content) for *state, content in rows.itertuples(index=False, name=None)}


def remember_contents(table: Path, contents: Mapping[State, str], began: int, before: Mapping[State, str]) -> None:
    """Save the digests of files that had not changed shortly before the pass began, at `began` ns."""
    kept = {state: content for state, content in contents.items() if max(state[2:4]) < began - RACY_NS}
    if kept == before:
        return
    rows = [(*state, content) for state, content in kept.items()]
    write_table(table, pd.DataFrame(rows, columns=[*STATE, "content"]))
