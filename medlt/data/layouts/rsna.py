"""Layout `rsna`: the RSNA Pneumonia Detection Challenge (Shih et al., Radiol Artif Intell 2019; Kaggle, stage 2).

`stage_2_train_labels.csv`: patientId, x, y, width, height, Target, one row per box or one row without a box;
`stage_2_detailed_class_info.csv`: patientId, class (Lung Opacity, No Lung Opacity / Not Normal, Normal). Images are
`stage_2_train_images/<patientId>.dcm`, 1024 px. `--boxes stage_2_train_labels.csv` reads the boxes.

A patientId names an image: the images are of ChestX-ray14, which has several of a patient. Where
`pneumonia-challenge-dataset-mappings_2018.json` (RSNA; subset_img_id, img_id) is present, patients are those of
ChestX-ray14, with the ids of the layout nih-cxr-lt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import Draft, LayoutResult, finish
from medlt.data.layouts.options_published import RsnaOptions
from medlt.data.layouts.published import named_table, source_files, with_patients
from medlt.data.layouts.reading import read_table, require
from medlt.types import InputError

OPACITY = "Lung Opacity"
CLASSES = (OPACITY, "No Lung Opacity / Not Normal", "Normal")
_MAPPING = r"pneumonia-challenge-dataset-mappings_2018\.json"


def rsna(src: Path, options: RsnaOptions) -> LayoutResult:
    """Read the folder `src` with the tables, and with the images unless `images` is given. Raises InputError."""
    folder, files, root, pictures = source_files(src, options.images)
    table = named_table(files, folder, r"stage_2_train_labels\.csv(?:\.gz)?")
    if table is None:
        raise InputError(f"{folder.absolute()}: no stage_2_train_labels.csv; check SRC")
    source = read_table(table, ("patientId",))
    require(source, ("patientId", "Target"), table)
    target = source.groupby("patientId")["Target"].max().astype(np.float64)
    labels, note = _classes(target, named_table(files, folder, r"stage_2_detailed_class_info\.csv(?:\.gz)?"))
    rows = labels.assign(path="stage_2_train_images/" + labels.index + ".dcm", split=pd.NA, view=pd.NA).rename_axis(
        "uid"
    )
    mapping = named_table(files, folder, _MAPPING)
    patients: tuple[str, ...]
    if mapping is not None and options.patient is None:
        rows, patients = _of_nih(rows, mapping), (f"patients of ChestX-ray14 by {mapping.name}",)
    else:
        rows, patients = with_patients(rows, options.patient, table)
    draft = Draft(tree.by_stem(rows, pictures), tuple(map(str, labels.columns)), root, table, (note, *patients))
    return finish(draft, options)


def _classes(target: pd.Series, table: Path | None) -> tuple[pd.DataFrame, str]:
    """Return a 0/1 column per class, or Lung Opacity alone without the table of classes; and a note."""
    if table is None:
        return target.rename(OPACITY).to_frame(), f"{OPACITY} by Target; no stage_2_detailed_class_info.csv"
    source = read_table(table, ("patientId",))
    require(source, ("patientId", "class"), table)
    classes = source.drop_duplicates().set_index("patientId")["class"]
    if len(strange := classes[~classes.isin(CLASSES)]):
        raise InputError(f"{table}: unknown class {strange.iloc[0]!r}; is this the published table?")
    if len(twice := classes.index[classes.index.duplicated()]):
        raise InputError(f"{table}: image {twice[0]} has two classes; remove one")
    mine = classes.reindex(target.index)
    if len(torn := target.index[mine.notna() & ((mine == OPACITY) != (target == 1))]):
        raise InputError(f"{table}: class of {torn[0]} contradicts its Target; use the two tables of one release")
    labels = pd.DataFrame({name: (mine == name).astype(np.float64).where(mine.notna()) for name in CLASSES})
    return labels.assign(**{OPACITY: target}), f"three classes by {table.name}"


def _of_nih(rows: pd.DataFrame, mapping: Path) -> pd.DataFrame:
    """Return rows with the patients of ChestX-ray14. Raises InputError for a mapping that lacks an image."""
    try:
        read = pd.read_json(mapping, dtype=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{mapping}: not readable as JSON: {str(error).splitlines()[0]}") from None
    require(read, ("subset_img_id", "img_id"), mapping)
    images = read.drop_duplicates("subset_img_id").set_index("subset_img_id")["img_id"]
    patient = images.astype("str").str.extract(r"^0*(\d+)_", expand=False).reindex(rows.index)
    if patient.isna().any():
        raise InputError(f"{mapping}: names no patient of {rows.index[patient.isna()][0]}; give --patient instead")
    return rows.assign(patient_id=patient)
