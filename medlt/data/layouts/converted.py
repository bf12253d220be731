"""Image files by the names of their sources, where `medlt convert` made them without de-identification.

A conversion names an image by a digest of its file's content. Its sources.csv (source, file) and the column `source` of
its manifest.parquet lead back to the name, by which published lists know the image: the dicom_id of MIMIC-CXR. A
de-identified release has no sources.csv, so nothing leads back from it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.reading import read_table, require
from medlt.remote import AnyFile
from medlt.types import InputError

TABLES = re.compile(r"(?:sources|failures|duplicates|objects)\.csv")
"""The tables of a conversion, none of which holds labels."""
_MANIFEST, _SOURCES = "manifest.parquet", "sources.csv"


def pictures(root: AnyFile, files: list[str]) -> pd.DataFrame:
    """Return `tree.images` of the files below `root`, with `source`, the path that identifies an image, and `view`.

    `stem` and `source` are those of the source file where the image is converted, else its own; `view` is what the
    conversion read in the tags, else blank. Tables at a URL are not read. Raises InputError for a conversion whose
    tables cannot be read.
    """
    images = tree.images(files)
    images = images.assign(source=images["path"], view=pd.Series(pd.NA, images.index, dtype="str"))
    if not isinstance(root, Path):
        return images
    for table in (file for file in files if f"/{file}".endswith(f"/{_MANIFEST}")):
        folder = table[: -len(_MANIFEST)]
        if f"{folder}{_SOURCES}" in files:
            images = _traced(images, folder, _entries(root / table, root / folder / _SOURCES))
    return images


def _entries(manifest: Path, sources: Path) -> pd.DataFrame:
    """Return file and view by path of the first frames of a conversion; empty if the manifest is not of one."""
    try:
        rows = pd.read_parquet(manifest)
    except (OSError, ValueError):
        raise InputError(f"{manifest}: not readable as parquet; restore it from a copy, or make it again") from None
    if not {"path", "source", "frame", "view"} <= {*rows}:
        return pd.DataFrame({"file": [], "view": []}, dtype="str")
    table = read_table(sources, ("source", "file"))
    require(table, ("source", "file"), sources)
    first = rows[rows["frame"] == 1].set_index("path")
    return first.assign(file=first["source"].map(table.set_index("source")["file"]))[["file", "view"]].dropna(how="all")


def _traced(images: pd.DataFrame, folder: str, entries: pd.DataFrame) -> pd.DataFrame:
    """Return the images with what is known of those that a conversion into `folder` made."""
    known = entries.set_axis(folder + entries.index.astype(str), axis=0)
    source = images["path"].map(known["file"])
    here = source.notna()
    names = source.where(here, images["source"]).astype("str")
    view = images["view"].where(~here, images["path"].map(known["view"]))
    return images.assign(source=names, stem=images["stem"].where(~here, tree.stems(names)), view=view)
