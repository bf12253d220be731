"""Subfolders for many files: no folder holds more than MOST_FILES of them, and a small collection stays in one folder.

A subfolder is named by hex digits of the digest of the file's name, so that it depends on nothing else: abc/ for up to
three digits, abc/def/ for more.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import count
from pathlib import Path, PurePosixPath

from medlt.types import InputError

MOST_FILES = 10_000
"""Most files in a folder. Many file systems and object browsers become slow beyond it."""
_TOGETHER = 3  # digits of one level, which has up to 4096 folders


def subfolders(names: Collection[str], limit: int = MOST_FILES) -> dict[str, str]:
    """Return name -> subfolder: "" for fewer names than `limit`, else such as "3f/", the same for the same names.

    A subfolder holds up to `limit` of them, and the folder itself has room for a table. Raises ValueError for a limit
    below 1, and for a name that appears twice.
    """
    if limit < 1 or len(set(names)) < len(names):
        raise ValueError(f"a folder holds 1 file or more, not {limit}, and each name once")
    if len(names) < limit:
        return dict.fromkeys(names, "")
    for digits in count(1):
        chosen = {name: subfolder(name, digits) for name in names}
        if max(Counter(chosen.values()).values()) <= limit:
            return chosen
    raise AssertionError("digests differ")


def digits_for(files: int, limit: int = MOST_FILES) -> int:
    """Return how many digits `subfolder` needs for this number of files whose names are not known yet.

    A subfolder then holds half of `limit` on average: for limits of a thousand or more, never as many as `limit`.
    """
    digits = 0
    while files >= limit and files / 16**digits > limit / 2:
        digits += 1
    return digits


def subfolder(name: str, digits: int) -> str:
    """Return the subfolder of a name by so many digits, with a slash at its end; "" for none."""
    text = hashlib.blake2b(name.encode(), digest_size=32).hexdigest()[:digits]
    return "".join(f"{text[at : at + _TOGETHER]}/" for at in range(0, digits, _TOGETHER))


GROWING = digits_for(1_000_000)
"""Digits for folders to which files are added without a known end: a million of them stay far below the limit."""


def require_no_link(folder: Path, files: Iterable[str]) -> None:
    """Raise InputError if a subfolder of `folder` that one of these files is in is a link, which leads elsewhere."""
    inside = {parent for file in files for parent in PurePosixPath(file).parents}
    if links := [folder / place for place in sorted(inside) if place.parts and (folder / place).is_symlink()]:
        where = links[0].absolute()
        raise InputError(f"{where}: is a link, and medlt writes nothing behind links here; move it away, and run again")
