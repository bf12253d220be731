"""Writes a cohort: one DICOM file per image, one mask per finding of it, and the table of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medlt import files
from medlt.data.columns import MASK
from medlt.data.convert.encode import png
from medlt.data.phantom.cohort import COMMON_TO_RARE, SHARES, cohort
from medlt.data.phantom.dicom import encode
from medlt.data.phantom.render import FINDINGS, check_size, film
from medlt.types import InputError

TABLE = "labels.csv"
_STAMP = "phantom.json"
_IMAGES, _MASKS = "dicom", "masks"
_DRAWING = 1
"""Raise this number when the drawing changes, so that an old folder is not reused."""


def _claim(folder: Path, stamp: dict[str, object]) -> None:
    """Mark the folder with the settings of this cohort. Raises InputError if it holds another one."""
    path = folder / _STAMP
    try:
        known = json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise InputError(f"{path}: damaged; restore it, or choose another folder") from None
    if known != stamp and (known is not None or (folder / _IMAGES).exists()):
        raise InputError(f"{folder}: holds images of other settings (see {path.name}); choose another folder")
    files.write_json(path, stamp)


def _write_one(folder: Path, seed: int, size: int, row: dict[str, object]) -> None:
    """Write the files of one row that do not exist yet."""
    image = folder / str(row["path"])
    masks = {finding: folder / str(row[MASK + finding]) for finding in FINDINGS if row[finding] == 1}
    if all(path.exists() for path in (image, *masks.values())):
        return
    exposed = film(row, seed, size)
    for finding, path in masks.items():
        files.write_bytes(path, encode_mask(exposed.masks[finding], finding))
    if not image.exists():
        files.write_bytes(image, encode(row, exposed, seed))


def encode_mask(mask: NDArray[np.bool_], finding: str) -> bytes:
    """Return an 8-bit PNG of 255 where the finding is and 0 elsewhere."""
    return png(mask * np.uint8(255), {"Description": f"{finding} in a synthetic radiograph"})


def _with_masks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with one column of mask files per finding, blank where the finding is absent."""
    paths = {
        MASK + finding: (f"{_MASKS}/{finding}/" + table["uid"] + ".png").where(table[finding] == 1)
        for finding in FINDINGS
    }
    return table.assign(**paths)


def write_phantom(
    folder: Path,
    *,
    patients: int = 600,
    seed: int = 0,
    size: int = 256,
    imbalance: float = 50.0,
    evaluation_imbalance: float | None = None,
    order: Sequence[str] = COMMON_TO_RARE,
    shares: Sequence[float] = SHARES,
    workers: int = 1,
) -> Path:
    """Write a cohort as DICOM files of size x size with masks, then labels.csv; return the path of the table.

    Columns: uid, path (relative to the folder), patient_id, study, split, view, sex, age, one 0/1 column per finding,
    No_Finding, and one column per finding with the path of its mask where it is present. The bytes depend on the
    settings, not on `workers` (threads). Existing files are kept, so a stopped run resumes. Raises InputError if the
    folder holds a cohort with other settings.
    """
    check_size(size)
    folder = Path(folder)
    table = cohort(patients, seed, imbalance, evaluation_imbalance=evaluation_imbalance, order=order, shares=shares)
    table.insert(1, "path", _IMAGES + "/" + table["patient_id"] + "/" + table["uid"] + ".dcm")
    text = table.to_csv(index=False, lineterminator="\n")
    _claim(folder, {"drawing": _DRAWING, "seed": seed, "size": size, "table": files.digest(text)})
    table = _with_masks(table)
    records: list[dict[str, object]] = table.to_dict("records")
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        list(pool.map(partial(_write_one, folder, seed, size), records))
    files.write_text(folder / TABLE, table.to_csv(index=False, lineterminator="\n"))
    return folder / TABLE
