"""Layout `siim`: SIIM-ACR Pneumothorax Segmentation (Kaggle 2019).

`train-rle.csv` (first stage) or `stage_2_train.csv`: ImageId, EncodedPixels (its header begins with a blank), one row
per mask; -1 means no pneumothorax. Images are `dicom-images-train/STUDY/SERIES/<ImageId>.dcm`, 1024 px. A mask is a
list of skipped and covered pixels in turn, column by column from the top left; `--masks DIR` writes the masks of an
image together as one PNG of the image's size. The tables name no patient, so that `--patient` is needed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.columns import MASK
from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.options_published import SiimOptions
from medlt.data.layouts.published import named_table, source_files, with_patients
from medlt.data.layouts.reading import read_table, require
from medlt.data.layouts.run_lengths import runs, write_mask
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
    if (blank := source["EncodedPixels"].isna()).any():
        raise InputError(
            f"{present[0]}: EncodedPixels of {source['ImageId'][blank].iloc[0]} is blank; write -1 for no mask"
        )
    masked = source["EncodedPixels"].str.strip() != "-1"
    labels = masked.groupby(source["ImageId"].str.strip()).any().astype(np.float64)
    rows = labels.rename(FINDING).to_frame().rename_axis("uid")
    if options.masks is not None:
        masks = options.masks.absolute()
        rows = rows.assign(**{f"{MASK}{FINDING}": _mask_column(labels, masks)})
        pictures = pictures[[(root.absolute() / path).parent != masks for path in pictures["path"]]]
    path = rows.index.to_series().map(pictures.drop_duplicates("stem").set_index("stem")["path"])
    rows = rows.assign(path=path.fillna(rows.index.to_series() + ".dcm"), split=pd.NA, view=pd.NA)
    rows, patients = with_patients(rows, options.patient, present[0])
    about = "masks are not read; --masks DIR writes them" if options.masks is None else f"masks in {options.masks}"
    notes = (f"labels of {present[0].name}; its {about}", *patients)
    result = finish(Draft(tree.by_stem(rows, pictures), (FINDING,), root, present[0], notes), options)
    return result if options.masks is None else _with_masks(result, source[masked], present[0])


def _with_masks(result: LayoutResult, source: pd.DataFrame, table: Path) -> LayoutResult:
    """Return the result with what writes the masks of its images. Raises InputError for a mask that is not valid."""
    codes = source["EncodedPixels"].groupby(source["ImageId"].str.strip()).agg(tuple)
    files = {uid: Path(str(file)) for uid, row in result.manifest.masks().items() for file in row.values()}
    for uid in files:
        try:
            [runs(code) for code in codes[uid]]
        except (ValueError, OverflowError) as error:
            problem = f"EncodedPixels of {uid}: {str(error).splitlines()[0]}"
            raise InputError(f"{table}: {problem}; use the table as Kaggle published it") from None
    writers = {file: partial(write_mask, codes[uid], result.manifest.local_file(uid)) for uid, file in files.items()}
    return replace(result, files=writers)


def _mask_column(labels: pd.Series, folder: Path) -> pd.Series:
    """Return the file of the mask of each image, None where there is no pneumothorax."""
    paths = [str(folder / f"{uid}.png") if present else None for uid, present in labels.items()]
    return pd.Series(paths, labels.index, dtype=object)
