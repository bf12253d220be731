"""Writes a small MIMIC-CXR-JPG in exactly its published layout, with the label lists of MIMIC-CXR-LT and CXR-LT.

Images are of the phantom. Names of files, folders, columns and values are those of PhysioNet's mimic-cxr-jpg 2.0.0, of
github.com/VITA-Group/LongTailCXR, of miccai-2023_mimic-cxr-lt and of cxr-lt-iccv-workshop-cvamd 2.0.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.convert.encode import jpeg
from medlt.data.layouts.cxr_lt import FINDINGS_2023, FINDINGS_2024
from medlt.data.layouts.mimic_cxr_lt import FINDINGS
from medlt.data.phantom.dicom import encode
from medlt.data.phantom.render import film
from medlt.files import write_bytes

DRAWN = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Lung Lesion": "Nodule",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pleural Effusion": "Effusion",
    "Pneumonia": "Consolidation",
    "Pneumoperitoneum": "Pneumoperitoneum",
    "Pneumothorax": "Pneumothorax",
    "Support Devices": "Support_Device",
}
"""Finding of the lists -> what the phantom draws for it; the images of all others are normal."""
LONG_TAIL = {
    **dict.fromkeys(FINDINGS, 4), "No Finding": 40, "Support Devices": 28, "Pleural Effusion": 24, "Cardiomegaly": 18,
    "Atelectasis": 14, "Consolidation": 10, "Lung Lesion": 8, "Pneumothorax": 5,
}  # fmt: skip
"""Finding -> train patients."""
VIEWS = ("PA", "AP", "PA", "LATERAL", "AP", "LL", "PA", None)
CHEXPERT = FINDINGS[:14]
TASK_3 = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")


def write_mimic_cxr_jpg(
    folder: Path | str, counts: Mapping[str, int] = LONG_TAIL, *, size: int = 96, seed: int = 0
) -> Path:
    """Write the images, size x size px, with all tables and lists, and return the folder.

    counts: finding of the lists -> train patients, with a further 40 % in validation and 60 % in test. Every image has
    one finding in the list of 2022, and further ones without a drawing in the lists of 2023 and 2024.
    """
    root, table = Path(folder), entries(counts)
    write_images(root, table, size=size, seed=seed)
    write_tables(root, table)
    write_lists(root, table)
    return root


def entries(counts: Mapping[str, int]) -> pd.DataFrame:
    """Return one row an image: dicom_id, subject_id, study_id, ViewPosition, split, balanced, and `finding`, its only
    one. The first patient of a finding in each split has a frontal and a lateral image in one study."""
    rows, patients, view = [], count(10000032), cycle(VIEWS)
    for split, share in (("train", 1.0), ("validate", 0.4), ("test", 0.6)):
        for name in FINDINGS:
            for number in range(max(2, round(share * counts[name]))):
                patient = next(patients)
                images = 2 if number == 0 else 1
                for image in range(images):
                    chosen = "PA" if images == 2 and image == 0 else "LATERAL" if image else next(view)
                    rows.append((patient, 50000000 + patient % 1000, chosen, split, number < 1, name))
    table = pd.DataFrame(rows, columns=["subject_id", "study_id", "ViewPosition", "split", "balanced", "finding"])
    table.insert(0, "dicom_id", [_dicom_id(number) for number in range(len(table))])
    return table


def _dicom_id(number: int) -> str:
    digits = hashlib.sha256(str(number).encode()).hexdigest()
    return "-".join(digits[8 * part : 8 * part + 8] for part in range(5))


def place(row: pd.Series, suffix: str = ".jpg") -> str:
    """Return the published path: files/p10/p10000032/s50414267/<dicom_id>.jpg."""
    patient = str(row["subject_id"])
    return f"files/p{patient[:2]}/p{patient}/s{row['study_id']}/{row['dicom_id']}{suffix}"


def drawing(row: pd.Series) -> dict[str, object]:
    """Return what the phantom draws for an image, as a row of `medlt.data.phantom.cohort`."""
    about: dict[str, object] = {"uid": row["dicom_id"], "patient_id": str(row["subject_id"]), "sex": "F", "age": 60}
    about |= {"study": 1, "view": row["ViewPosition"] if row["ViewPosition"] in ("AP", "PA") else "PA"}
    return about | ({DRAWN[row["finding"]]: 1} if row["finding"] in DRAWN else {})


def write_images(root: Path, table: pd.DataFrame, *, size: int, seed: int, dicom: bool = False) -> None:
    """Write the images as JPEG of quality 95, as in MIMIC-CXR-JPG, or as DICOM files, as in MIMIC-CXR."""
    for _, row in table.iterrows():
        exposed = film(drawing(row), seed, size)
        pixels = np.round(255 * exposed.image).astype(np.uint8)
        content = encode(drawing(row), exposed, seed) if dicom else jpeg(pixels, 95)
        write_bytes(root / place(row, ".dcm" if dicom else ".jpg"), content)


def one_hot(table: pd.DataFrame, findings: Sequence[str], extra: bool) -> pd.DataFrame:
    """Return one 0/1 column a finding: the image's own, and if `extra` further ones in turn unless it is normal."""
    labels = pd.DataFrame({name: (table["finding"] == name).astype(int) for name in findings}, index=table.index)
    if not extra:
        return labels
    if "Normal" in labels:
        labels["Normal"] = (table["finding"] == "No Finding").astype(int)
    turn = cycle([name for name in findings if name not in ("No Finding", "Normal")])
    for at in table.index[table["finding"] != "No Finding"]:
        labels.loc[at, [next(turn) for _ in range(1 + len(findings) // 12)]] = 1
    return labels


def write_tables(root: Path, table: pd.DataFrame) -> None:
    """Write the three tables of MIMIC-CXR-JPG, gzipped as published."""
    root.mkdir(parents=True, exist_ok=True)
    ids = table[["dicom_id", "subject_id", "study_id"]]
    about = {"PerformedProcedureStepDescription": "CHEST (PA AND LAT)", "Rows": 3056, "Columns": 2544}
    metadata = ids.assign(ViewPosition=table["ViewPosition"], **about)
    metadata.to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    split = table[["dicom_id", "study_id", "subject_id", "split"]]
    split.to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    studies = table.drop_duplicates("study_id")
    labels = one_hot(studies, CHEXPERT, extra=False).astype(float).replace(0.0, np.nan)
    chexpert = studies[["subject_id", "study_id"]].join(labels)
    chexpert.to_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)


def write_lists(root: Path, table: pd.DataFrame) -> None:
    """Write the lists of MIMIC-CXR-LT 2022 and 2023, and of CXR-LT 2023 and 2024."""
    for part, rows, name in _parts(table):
        ids = rows[["subject_id", "study_id", "dicom_id"]].assign(path=[place(row) for _, row in rows.iterrows()])
        _save(root / f"labels/mimic-cxr-lt_single-label_{name}.csv", ids.join(one_hot(rows, FINDINGS, extra=False)))
        if name != "balanced-test":
            pruned = ids.join(one_hot(rows, FINDINGS, extra=True))
            _save(root / f"pruned/miccai2023_mimic-cxr-lt_labels_{part}.csv", pruned)
            _challenges(root, rows, {"train": "train", "val": "development", "test": "test"}[part])
    every = _challenge_ids(table)
    split = table["split"].replace("validate", "development")
    _save(root / "cxr-lt-2024/labels.csv", every.join(one_hot(table, FINDINGS_2024, extra=True)).assign(split=split))


def _parts(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield (part, rows, name of the list of 2022)."""
    yield "train", table[table["split"] == "train"], "train"
    yield "val", table[table["split"] == "validate"], "balanced-val"
    test = table[table["split"] == "test"]
    yield "test", test, "test"
    yield "test", test[test["balanced"]], "balanced-test"


def _challenge_ids(rows: pd.DataFrame) -> pd.DataFrame:
    ids = rows[["dicom_id", "subject_id", "study_id", "ViewPosition"]]
    return ids.assign(fpath=[place(row) for _, row in rows.iterrows()])


def _challenges(root: Path, rows: pd.DataFrame, part: str) -> None:
    ids = _challenge_ids(rows)
    _save(root / f"cxr-lt-2023/{part}.csv", ids.join(one_hot(rows, FINDINGS_2023, extra=True)))
    tasks = {
        "1": tuple(name for name in FINDINGS_2024 if name not in TASK_3),
        "2": tuple("Normal" if name == "No Finding" else name for name in FINDINGS_2023),
        "3": TASK_3,
    }
    for task, findings in tasks.items():
        name = "train_labeled" if part == "train" else f"{part}_labeled_task{task}"
        if part != "train" or task == "1":
            _save(root / f"cxr-lt-2024/{name}.csv", ids.join(one_hot(rows, findings, extra=True)))


def _save(file: Path, table: pd.DataFrame) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
