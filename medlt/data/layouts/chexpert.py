"""Layout `chexpert`: CheXpert (v1.0, v1.0-small) and CheXpert Plus.

CheXpert (Irvin et al., AAAI 2019): `train.csv`, `valid.csv` and, if you have it, `test.csv`, one row per image: Path
(CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg), Sex, Age, Frontal/Lateral, AP/PA and 14 findings,
each 1, 0, -1 or blank. CheXpert Plus (Chambon et al., arXiv 2405.19538): `df_chexpert_plus_240401.csv` with
path_to_image, frontal_lateral, ap_pa, deid_patient_id, age, sex and split, and the labels of CheXbert in
`report_fixed.json`, `impression_fixed.json` and `findings_fixed.json`, one JSON object per line with path_to_image and
the 14 findings.
Column names as read by mlmed/torchxrayvision (datasets.py, CheX_Dataset) and Stanford-AIMI/chexpert-plus.

The uid is the end of the path, patient00001_study1_view1_frontal; images match it with any suffix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medlt.data.layouts import tree
from medlt.data.layouts.layout_result import PARTS, Draft, LayoutResult, finish
from medlt.data.layouts.options_published import ChexpertOptions
from medlt.data.layouts.published import named_table, source_files, unread_tables
from medlt.data.layouts.reading import known_findings, read_table, require
from medlt.types import InputError

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_PLACE = r"(?:^|/)(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<name>[^/]+?)(?:\.\w+)?$"
_SEX = {"male": "M", "female": "F", "m": "M", "f": "F"}
_PLUS = r"df_chexpert_plus_\d+\.csv(?:\.gz)?"
_LABELS = r"(?:report|impression|findings)_fixed\.json"


def chexpert(src: Path, options: ChexpertOptions) -> LayoutResult:
    """Read the folder `src` with the tables, and with the images unless `images` is given. Raises InputError."""
    folder, files, root, pictures = source_files(src, options.images)
    plus = named_table(files, folder, _PLUS)
    if plus is not None:
        labels = options.labels or _only_labels(files, folder)
        rows, findings, table = *_plus(plus, labels), plus
        notes = (f"CheXpert Plus, labels of {labels.name}", *unread_tables(files, folder, (plus, labels)))
        source, labeler = labels.name, "chexbert"
    else:
        tables = {part: named_table(files, folder, rf"{part}\.csv(?:\.gz)?") for part in ("train", "valid", "test")}
        present = {part: path for part, path in tables.items() if path is not None}
        if not present:
            raise InputError(f"{folder.absolute()}: no train.csv, valid.csv or df_chexpert_plus_*.csv; check SRC")
        rows, findings = _first(present)
        source, labeler = ", ".join(path.name for path in present.values()), "chexpert-labeler"
        table, notes = folder, ("CheXpert", *unread_tables(files, folder, tuple(present.values())))
        if "test" not in present and "valid" in present:
            notes = (*notes, "valid.csv is split val, and no image has split test; --resplit makes all three")
    where = _identified(pictures["path"])
    known = pictures.assign(stem=where["uid"].where(where["uid"].notna(), pictures["stem"]))
    matched = tree.by_stem(rows, known)
    return finish(Draft(matched, findings, root, table, notes, labels=source, labeler=labeler), options)


def _only_labels(files: Sequence[str], folder: Path) -> Path:
    """Return the only label file of CheXpert Plus. Raises InputError if there is none, or more than one."""
    paths = [folder / file for file in files if re.fullmatch(_LABELS, file.rsplit("/", 1)[-1])]
    if len(paths) != 1:
        which = (
            f"the labels of {' and '.join(p.name for p in paths)}; choose one" if paths else "no label file; give one"
        )
        raise InputError(f"{folder}: holds {which} with --labels, such as impression_fixed.json")
    return paths[0]


def _first(tables: dict[str, Path]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows by uid and findings from train.csv, valid.csv and test.csv of CheXpert."""
    parts = []
    for part, table in tables.items():
        source = read_table(table, ("Path",))
        require(source, ("Path",), table)
        parts.append(source.assign(split=PARTS[part]))
    source = pd.concat(parts, ignore_index=True)
    return _rows(source, source["Path"], next(iter(tables.values())))


def _plus(table: Path, labels: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows by uid and findings from the table of CheXpert Plus and one of its label files."""
    source = read_table(table, ("path_to_image", "deid_patient_id"))
    require(source, ("path_to_image", "split"), table)
    names = {"frontal_lateral": "Frontal/Lateral", "ap_pa": "AP/PA", "sex": "Sex", "age": "Age"}
    source = source.rename(columns=names)
    try:
        read = pd.read_json(labels, lines=True, dtype={"path_to_image": str})
    except (ValueError, OSError) as error:
        raise InputError(f"{labels}: not readable as JSON lines: {str(error).splitlines()[0]}") from None
    require(read, ("path_to_image",), labels)
    uids = _identified(read["path_to_image"])["uid"]
    columns = [*known_findings(read.columns, FINDINGS)]
    read = read[columns].set_axis(pd.Index(uids)).loc[lambda rows: ~rows.index.duplicated()]
    mine = _identified(source["path_to_image"])["uid"]
    source = source.drop(columns=[c for c in columns if c in source]).join(read, on=mine.rename("uid"))
    source["split"] = source["split"].str.strip().str.lower().map(PARTS)
    return _rows(source, source["path_to_image"], labels)


def _rows(source: pd.DataFrame, paths: pd.Series, table: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return path, patient_id, study_id, split, view, sex, age and the findings by uid."""
    where = _identified(paths)
    if (lost := where["uid"].isna()).any():
        raise InputError(
            f"{table}: {paths[lost].iloc[0]!r} does not end in patientN/studyN/VIEW; is this CheXpert's table?"
        )
    names = known_findings(source.columns, FINDINGS)
    if not names:
        raise InputError(f"{table}: none of the 14 findings is a column; is this the published table?")
    rows = source[list(names)].rename(columns=names)
    rows = rows.assign(path=paths, patient_id=where["patient"], study_id=where["patient"] + "_" + where["study"])
    rows["split"], rows["view"] = source["split"], _views(source, where["name"])
    if "Sex" in source:
        rows["sex"] = source["Sex"].astype("str").str.lower().map(_SEX)
    if "Age" in source:
        rows["age"] = pd.to_numeric(source["Age"], errors="coerce")
    return rows.set_axis(pd.Index(where["uid"], name="uid")), tuple(names.values())


def _views(source: pd.DataFrame, names: pd.Series) -> pd.Series:
    """Return AP, PA, ... of frontal images, LATERAL of lateral ones; the file's name counts where no column does."""
    side = source["Frontal/Lateral"] if "Frontal/Lateral" in source else names.str.rsplit("_", n=1).str[-1]
    lateral = side.astype("str").str.lower() == "lateral"
    position = source["AP/PA"] if "AP/PA" in source else pd.Series(pd.NA, source.index, dtype="str")
    return position.astype("str").fillna("frontal").mask(lateral, "LATERAL")


def _identified(paths: pd.Series) -> pd.DataFrame:
    """Return patient, study, name and uid of paths, blank for a path that does not end in PATIENT/STUDY/NAME."""
    where = paths.astype("str").str.extract(_PLACE)
    return where.assign(uid=where["patient"] + "_" + where["study"] + "_" + where["name"])
