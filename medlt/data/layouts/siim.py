"""Layout `siim`: SIIM-ACR Pneumothorax Segmentation (Kaggle 2019).

`train-rle.csv` (first stage) or `stage_2_train.csv`: ImageId, EncodedPixels (its header begins with a blank), one row
per mask; -1 means no pneumothorax. Images are `dicom-images-train/STUDY/SERIES/<ImageId>.dcm`. The masks are not read.
The tables name no patient, and the layout opens no image, so that `--patient` is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.options_published import SiimOptions
from medlt.data.layouts.published import named_table, source_files, with_patients
from medlt.data.layouts.reading import read_table, require
from medlt.types import InputError

FINDING = "Pneumothorax"
TABLES = (r"stage_2_train\.csv(?:\.gz)?", r"train-rle\.csv(?:\.gz)?")


def siim(src: Path, options: SiimOptions) -> LayoutResult:
    """Read the folder `src` with the table, and with the images unless `images` is given. Raises InputError."""
    folder, files, root, pictures = source_files(src, options.images)
    present = [table for name in TABLES if (table := named_table(files, folder, name))]
    if not present:
        raise InputError(f"{folder.absolute()}: no stage_2_train.csv and no train-rle.csv; check SRC")
    source = read_table(present[0], None)
    require(source, ("ImageId", "EncodedPixels"), present[0])
    masked = source["EncodedPixels"].str.strip() != "-1"
    labels = masked.groupby(source["ImageId"].str.strip()).any().astype(np.float64)
    rows = labels.rename(FINDING).to_frame().rename_axis("uid")
    path = rows.index.to_series().map(pictures.drop_duplicates("stem").set_index("stem")["path"])
    rows = rows.assign(path=path.fillna(rows.index.to_series() + ".dcm"), split=pd.NA, view=pd.NA)
    rows, patients = with_patients(rows, options.patient, present[0])
    notes = (f"labels of {present[0].name}; its masks are not read", *patients)
    return finish(Draft(tree.by_stem(rows, pictures), (FINDING,), root, present[0], notes), options)
