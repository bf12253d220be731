"""Matches paths of a table to files where folders above them have other names, or are left out."""

from __future__ import annotations

import pandas as pd

DEEPEST = 8
"""Most folders to leave out on one side."""


def by_ending(paths: pd.Series, files: pd.Series) -> tuple[pd.Series, str]:
    """Return the file of each path (NaN if there is none), and a note; no match at all gives NaN and ''.

    Folders are left out in front of all paths or of all files, as few as possible, while each ending names one path
    and one file: `CheXpert-v1.0-small/train/a.jpg` is `train/a.jpg`, and `a.png` is `images_001/images/a.png`.
    """
    known = paths.dropna().drop_duplicates()
    for total in range(DEEPEST + 1):
        for left in range(total + 1):
            ends, tails = _without(known, left), _without(files, total - left)
            if ends.duplicated().any() or not (shared := tails.isin(ends)).any():
                continue
            if tails[shared].duplicated().any():
                continue
            file = pd.Series(files[shared].to_numpy(), index=tails[shared].to_numpy())
            path_of = dict(zip(known, ends.map(file), strict=True))
            sides = [f"{n} folder(s) of its {side}" for n, side in ((left, "paths"), (total - left, "files")) if n]
            note = f"images matched without the first {' and '.join(sides)}" if sides else "images matched by path"
            return paths.map(path_of), note
    return pd.Series(pd.NA, paths.index, dtype="str"), ""


def _without(paths: pd.Series, folders: int) -> pd.Series:
    """Return the paths without their first folders; those that have fewer keep their name alone."""
    parts = paths.str.split("/")
    return parts.map(lambda names: "/".join(names[min(folders, len(names) - 1) :]))
