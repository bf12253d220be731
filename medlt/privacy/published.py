"""Comparison of the images that a claim covers, and of their labels, with the shards in which they were made.

A shard is an artifact: its record has a checksum of each image and of the table of rows. An image that no sound shard
of this run holds was not made by it, whatever its name is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from medlt.csv_text import unescaped
from medlt.data.columns import is_synthetic
from medlt.files import digest_file, read_columns, read_table
from medlt.privacy.provenance import Provenance
from medlt.store import Artifact, Store

SHARDS = "shards"
TABLE = "metadata.csv"
CONSTANT = ("synthetic", "run", "method", "models", "weight", "split")
"""Columns of metadata.csv that are equal in all rows; the others are those of the shards."""
RESTORE = "restore images/, or move it away and run the same command again"


def image_violations(seen: Provenance) -> Iterator[str]:
    """Yield the first reason for which images/ and its labels are not what this run made. No file is named."""
    place, rows = seen.folder / "images", published_rows(seen)
    present = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
    if rows is None and not present:
        return
    sums, kept = made_images(seen)
    wanted = set() if rows is None else {_file_name(uid, path) for uid, path in rows["path"].items()}
    images = present - {TABLE}
    if strange := [name for name in images if PurePosixPath(name).name not in sums]:
        yield f"images/ holds {len(strange)} files that this run did not make ({RESTORE})"
    elif other := [name for name in images if digest_file(place / name) != sums[PurePosixPath(name).name]]:
        yield f"{len(other)} images are not those that this run made ({RESTORE})"
    elif images != wanted:
        yield f"images/ and manifest.parquet name different images ({RESTORE})"
    elif rows is not None and len(rows):
        yield from _label_violations(seen, rows, kept)


def image_name(uid: str, path: str) -> str:
    """Return the file of a synthetic row below the run folder: images/UID.png, or images/3f/UID.png (`medlt.folders`).

    A path of any other form, which the run did not write, gives images/UID.png.
    """
    inside = re.fullmatch(r"images/((?:[0-9a-f]{1,3}/)*)[^/]*", path)
    return f"images/{inside[1] if inside else ''}{uid}.png"


def _file_name(uid: object, path: object) -> str:
    return image_name(str(uid), str(path)).removeprefix("images/")


def published_rows(seen: Provenance) -> pd.DataFrame | None:
    """Return the synthetic rows of RUN/manifest.parquet; None if nothing is published yet."""
    file = seen.folder / "manifest.parquet"
    if not file.is_file():
        return None
    rows = read_columns(file)
    return rows[is_synthetic(rows)]


def made_images(seen: Provenance) -> tuple[dict[str, str], pd.DataFrame]:
    """Return file name -> checksum of all kept images in sound shards of this run, and their rows by uid."""
    store, sums, tables = Store(seen.folder / "stages"), dict[str, str](), list[pd.DataFrame]()
    for folder in store.folders(SHARDS):
        made = store.examine(SHARDS, folder.name)
        if isinstance(made, Artifact) and made.key.get("run") == seen.record.get("id"):
            names = [name for name in made.files if name.startswith("images/")]
            sums |= {name.removeprefix("images/"): made.files[name] for name in names}
            tables.append(read_table(folder / "kept.parquet"))
    filled = [table for table in tables if len(table)]
    return sums, pd.concat(filled) if filled else pd.DataFrame()


def _label_violations(seen: Provenance, rows: pd.DataFrame, kept: pd.DataFrame) -> Iterator[str]:
    """Yield a reason if labels in the manifest or in metadata.csv are not those of the shards."""
    file = seen.folder / "images" / TABLE
    if not file.is_file():
        yield f"images/{TABLE} is missing ({RESTORE})"
        return
    table = unescaped(pd.read_csv(file, dtype=str)).set_index("uid")
    known = set(kept.columns) | set(CONSTANT) | {"file_name"}
    own = kept.loc[rows.index] if set(rows.index) <= set(kept.index) else kept.iloc[:0]
    varied = [name for name in CONSTANT if name in table and table[name].nunique(dropna=False) != 1]
    if not _equal(rows, own, [name for name in own if name in rows and name != "path"]):
        yield "the labels in manifest.parquet are not those that the images were made with (restore it)"
    elif (
        sorted(table.index) != sorted(rows.index)
        or set(table.columns) - known
        or varied
        or list(table["file_name"]) != [_file_name(uid, rows.at[uid, "path"]) for uid in table.index]
        or not _equal(table.loc[rows.index], own, [name for name in table if name in own])
    ):
        yield f"images/{TABLE} is not the table of these images (restore it)"


def _equal(one: pd.DataFrame, other: pd.DataFrame, names: Sequence[str]) -> bool:
    """Return whether these columns hold equal values in the same order; blanks equal blanks."""
    return len(one) == len(other) and all(
        [_plain(value) for value in one[name]] == [_plain(value) for value in other[name]] for name in names
    )


def _plain(value: Any) -> object:
    """Return a value as the text that a CSV file has of it, which is exact for numbers too; None for a blank."""
    if isinstance(value, list) or getattr(value, "shape", ()) != ():
        return [str(one) for one in value]
    return None if pd.isna(value) else str(value)
