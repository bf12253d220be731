"""Which layout a collection has: by the file names of its tables, and by the columns of a single table.

Nothing is guessed from label values: the layout that is named here then reads the files, and refuses what does not fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medlt.data.layouts import tree
from medlt.data.layouts.reading import open_table
from medlt.remote import require_local
from medlt.types import InputError

MANIFEST = "manifest.parquet"
TABLE = re.compile(r"\.(?:csv|tsv)(?:\.gz)?$|\.xlsx$", re.IGNORECASE)
DICOM = re.compile(r"\.(?:dcm|dicom)$|(?:^|/)[^/.]+$|\.\d+$", re.IGNORECASE)
PUBLISHED = {
    "mimic-cxr-lt": r"mimic-cxr-[\d.]+-(?:chexpert|negbio|split)\.csv(?:\.gz)?|.*mimic(?:[-_]cxr)?[-_]lt[-_].*\.csv",
    "nih-cxr-lt": r"Data_Entry_2017\w*\.csv(?:\.gz)?|.*nih(?:[-_]cxr)?[-_]lt[-_].*\.csv",
    "cxr-lt": r"(?:train|development)_labeled(?:_task\d)?\.csv|cxr-lt-202\d.*\.csv",
    "padchest": r"PADCHEST_.*labels.*\.csv(?:\.gz)?",
    "vindr": r"image_labels_(?:train|test)\.csv(?:\.gz)?",
    "rsna": r"stage_2_train_labels\.csv(?:\.gz)?",
    "siim": r"train-rle\.csv(?:\.gz)?|stage_2_train\.csv(?:\.gz)?",
    "chexpert": r"df_chexpert_plus_\d+\.csv(?:\.gz)?",
}
"""Layout -> file names of its tables, whose folder is then the collection."""
COLUMNS = {
    "chexpert": {"Path", "Frontal/Lateral"},
    "vindr": {"image_id", "class_name", "rad_id"},
    "nih-cxr-lt": {"Image Index", "Finding Labels"},
    "padchest": {"ImageID", "ImageDir", "Labels"},
    "siim": {"ImageId", "EncodedPixels"},
    "rsna": {"patientId", "Target"},
}
"""Layout -> columns of a table whose name says nothing, such as train.csv."""


@dataclass(frozen=True)
class Sniffed:
    """A layout, its source, the options that it needs, and the reason in words."""

    layout: str
    source: Path
    reason: str
    options: dict[str, Any] = field(default_factory=dict)


def sniff(src: Path, labels: Path | None = None) -> Sniffed:
    """Return the layout of a folder, a table or a manifest. labels: table of labels of a folder of images.

    Layout "manifest" is a manifest.parquet with labels. Raises InputError, with the command that helps, for a folder
    that has to be converted first, or whose labels are missing.
    """
    if not src.exists():
        require_local(src)
        raise InputError(f"{src.absolute()}: no such file or folder; give a folder, a table or a manifest.parquet")
    if src.is_file() or src.suffix == ".parquet":
        if labels is not None:
            raise InputError(f"{src}: --labels is for a folder of images; leave it out, or give the folder")
        return _file(src)
    return _folder(src, labels)


def _file(src: Path) -> Sniffed:
    if src.suffix == ".parquet":
        return Sniffed("manifest", src, f"{src.name} is a manifest")
    if not TABLE.search(src.name):
        raise InputError(
            f"{src}: is no table and no manifest.parquet; give a .csv, .xlsx or .parquet file, or a folder"
        )
    if (layout := _by_name(src) or _by_columns(src)) is not None:
        source = src if layout == "nih-cxr-lt" else src.parent
        return Sniffed(layout, source, f"{src.name} is a table of {layout}")
    return Sniffed("csv", src, f"{src.name} is a table of your own")


def _folder(src: Path, labels: Path | None) -> Sniffed:
    files = tree.listing(src)
    if (src / MANIFEST).exists():  # a file, or a folder of parts
        return _converted(src, labels)
    if labels is not None:
        return Sniffed("folder", src, f"images with the labels of {labels.name}", {"labels": labels})
    tables = [src / file for file in files if TABLE.search(file)]
    for known in (_by_name, _by_columns):  # names first: a table may be large
        for table in tables:
            if (layout := known(table)) is not None:
                return Sniffed(layout, src, f"{table.relative_to(src)} is a table of {layout}")
    pictures = tree.images(files, src)["path"]
    if pictures.empty:
        raise InputError(f"{src.absolute()}: holds no image and no table that medlt knows; check the folder")
    if pictures.str.contains(DICOM).mean() > 0.5:
        raise InputError(
            f"{src.absolute()}: holds DICOM files; convert them first: medlt convert {src} converted, then "
            "medlt init converted --labels TABLE.csv"
        )
    if pictures.str.contains("/").all():
        return Sniffed("folder", src, "one sub-folder for each class")
    raise InputError(f"{src.absolute()}: holds images, and no labels; give them with --labels TABLE.csv")


def _converted(src: Path, labels: Path | None) -> Sniffed:
    """Return the layout of a folder of `medlt convert`, or of one with a labelled manifest."""
    import pandas as pd

    if pd.read_parquet(src / MANIFEST).attrs.get("findings"):
        return Sniffed("manifest", src / MANIFEST, f"{MANIFEST} in the folder has labels")
    if labels is None:
        raise InputError(f"{src.absolute()}: is a converted folder without labels; give them with --labels TABLE.csv")
    return Sniffed("folder", src, f"a converted folder with the labels of {labels.name}", {"labels": labels})


def _by_name(table: Path) -> str | None:
    """Return the layout that publishes a table of this name; None if none does."""
    names = PUBLISHED.items()
    return next((layout for layout, name in names if re.fullmatch(name, table.name, re.IGNORECASE)), None)


def _by_columns(table: Path) -> str | None:
    """Return the layout whose tables have these columns; None for another one, or one that cannot be read."""
    try:
        columns = {str(name).strip() for name in open_table(table, None).rows}
    except InputError:  # it may be any table; the layout that reads the collection's own one reports it
        return None
    return next((layout for layout, own in COLUMNS.items() if own <= columns), None)
