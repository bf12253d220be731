"""Layout `vindr`: VinDr-CXR and VinDr-PCXR (Nguyen et al., Sci Data 2022; PhysioNet vindr-cxr 1.0.0, vindr-pcxr 1.0.0).

`annotations/image_labels_train.csv`: one row per image and reader, image_id, rad_id and a 0/1 column per finding; each
train image of VinDr-CXR has three readers. `image_labels_test.csv`: one row per image, the readers' consensus; it calls
'Other diseases' 'Other disease'. Images are `train/<image_id>.dicom` and `test/<image_id>.dicom`. Boxes of
`annotations_train.csv` (image_id, rad_id, class_name, x_min, y_min, x_max, y_max) are read by `--boxes`. Column names
as public loaders of the release read them. No table names a patient, and no split val is published.

The VinBigData challenge on Kaggle (2021) has the train images alone: `train.csv`, one row per box, with the columns of
`annotations_train.csv` and class_id; a reader who saw none of its 14 findings has one row 'No finding', class 14.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.options_published import VindrOptions
from medlt.data.layouts.published import named_table, source_files, with_patients, with_val
from medlt.data.layouts.readers import united
from medlt.data.layouts.reading import read_table, require
from medlt.types import InputError

NAMES = {"Other disease": "Other diseases"}
_IDS = ("image_id", "rad_id")


def vindr(src: Path, options: VindrOptions) -> LayoutResult:
    """Read the folder `src` with the tables, and with the images unless `images` is given. Raises InputError."""
    folder, files, root, pictures = source_files(src, options.images)
    parts = {part: named_table(files, folder, rf"image_labels_{part}\.csv(?:\.gz)?") for part in ("train", "test")}
    tables = {part: path for part, path in parts.items() if path is not None}
    challenge = None if tables else named_table(files, folder, r"train\.csv(?:\.gz)?")
    if not tables and challenge is None:
        names = "image_labels_train.csv, image_labels_test.csv or train.csv of VinBigData"
        raise InputError(f"{folder.absolute()}: no {names}; check SRC")
    read = [_table(table, part, options.readers) for part, table in tables.items()]
    read += [] if challenge is None else [_boxes(challenge, options.readers)]
    rows = pd.concat([labels for labels, _ in read])
    findings = tuple(str(c) for c in rows.columns if c not in ("path", "split"))
    rows, own = with_patients(rows.assign(view=pd.NA), options.patient, challenge or next(iter(tables.values())))
    rows, split = with_val(rows, findings, options.seed) if challenge is None else (rows, ())
    notes = (*(note for _, note in read), *own, *split)
    return finish(Draft(tree.by_stem(rows, pictures), findings, root, folder, notes), options)


def _table(table: Path, part: str, readers: str) -> tuple[pd.DataFrame, str]:
    """Return one row per image with its labels, path and split, and a note."""
    source = read_table(table, _IDS)
    require(source, ("image_id",), table)
    findings = [c for c in source.columns if c not in _IDS]
    if wrong := [c for c in findings if not source[c].dropna().isin((0, 1)).all()]:
        raise InputError(f"{table}: column {wrong[0]!r} holds other values than 0 and 1; is this the published table?")
    labels, note = united(source[findings], source["image_id"], readers)
    labels = labels.rename(columns=NAMES)
    note = f"{table.name}: {len(labels)} images" + (f", {note}" if note else "")
    return labels.assign(path=part + "/" + labels.index + ".dicom", split=part).rename_axis("uid"), note


def _boxes(table: Path, readers: str) -> tuple[pd.DataFrame, str]:
    """Return one row per image of the challenge with its labels, path and no split, and a note."""
    source = read_table(table, _IDS)
    require(source, (*_IDS, "class_name"), table)
    marked = pd.crosstab([source["image_id"], source["rad_id"]], source["class_name"]).gt(0).astype(np.float64)
    images = marked.index.get_level_values("image_id").to_series()
    labels, note = united(marked.reset_index(drop=True).rename_axis(columns=None), images, readers)
    note = f"{table.name}: {len(labels)} images" + (f", {note}" if note else "")
    return labels.assign(path="train/" + labels.index + ".dicom", split=pd.NA).rename_axis("uid"), note
