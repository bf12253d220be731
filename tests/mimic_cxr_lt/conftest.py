"""A small MIMIC-CXR-JPG in exactly its published layout, with all label lists that medlt reads.

Images are of the phantom. Names of files, folders, columns and values are those of PhysioNet's mimic-cxr-jpg 2.0.0, of
github.com/VITA-Group/LongTailCXR, of miccai-2023_mimic-cxr-lt and of cxr-lt-iccv-workshop-cvamd 2.0.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.data.convert.encode import jpeg
from medlt.data.layouts.cxr_lt import FINDINGS_2023, FINDINGS_2024
from medlt.data.layouts.mimic_cxr_lt import FINDINGS
from medlt.data.phantom import film
from medlt.data.phantom.dicom import encode

SEED, SIZE = 5, 48
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
RAREST = ("Pneumoperitoneum", "Pneumothorax")
VIEWS = ("PA", "AP", "PA", "LATERAL", "AP", "LL", "PA", None)
CHEXPERT = FINDINGS[:14]
TASK_3 = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")


def entries() -> pd.DataFrame:
    """One row an image: dicom_id, subject_id, study_id, ViewPosition, split, balanced, and `finding`, its only one.

    Findings have 3 to 8 train images, the rarest fewest, so that every finding is seen in every split.
    """
    rows, subject, view = [], count(10000032), cycle(VIEWS)
    numbers = {name: 4 if name in RAREST else 5 + 3 * (name == "No Finding") for name in FINDINGS}
    for split, share in (("train", 1.0), ("validate", 0.4), ("test", 0.6)):
        for name in FINDINGS:
            for number in range(max(2, round(share * numbers[name]))):
                patient = next(subject)
                images = 2 if number == 0 else 1  # a frontal and a lateral image of one study
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
    """The published path: files/p10/p10000032/s50414267/<dicom_id>.jpg."""
    subject = str(row["subject_id"])
    return f"files/p{subject[:2]}/p{subject}/s{row['study_id']}/{row['dicom_id']}{suffix}"


def phantom(row: pd.Series) -> dict[str, object]:
    """What the phantom draws for an image."""
    about = {"uid": row["dicom_id"], "patient_id": str(row["subject_id"]), "sex": "F", "age": 60, "study": 1}
    about["view"] = row["ViewPosition"] if row["ViewPosition"] in ("AP", "PA") else "PA"
    return about | ({DRAWN[row["finding"]]: 1} if row["finding"] in DRAWN else {})


def write_images(root: Path, table: pd.DataFrame, dicom: bool = False) -> None:
    """Write the images as JPEG of quality 95, as in MIMIC-CXR-JPG, or as DICOM files, as in MIMIC-CXR."""
    for _, row in table.iterrows():
        file = root / place(row, ".dcm" if dicom else ".jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        exposed = film(phantom(row), SEED, SIZE)
        pixels = np.round(255 * exposed.image).astype(np.uint8)
        file.write_bytes(encode(phantom(row), exposed, SEED) if dicom else jpeg(pixels, 95))


def one_hot(table: pd.DataFrame, findings: Sequence[str], extra: bool) -> pd.DataFrame:
    """One 0/1 column a finding: the image's own, and if `extra` further ones in turn, except in normal images."""
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
    size = {"PerformedProcedureStepDescription": "CHEST (PA AND LAT)", "Rows": 3056, "Columns": 2544}
    metadata = ids.assign(ViewPosition=table["ViewPosition"], **size)
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
        _put(root / f"labels/mimic-cxr-lt_single-label_{name}.csv", ids.join(one_hot(rows, FINDINGS, extra=False)))
        if name != "balanced-test":
            pruned = ids.join(one_hot(rows, FINDINGS, extra=True))
            _put(root / f"pruned/miccai2023_mimic-cxr-lt_labels_{part}.csv", pruned)
            _challenges(root, rows, {"train": "train", "val": "development", "test": "test"}[part])
    every = _challenge_ids(table)
    split = table["split"].replace("validate", "development")
    _put(root / "cxr-lt-2024/labels.csv", every.join(one_hot(table, FINDINGS_2024, extra=True)).assign(split=split))


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
    _put(root / f"cxr-lt-2023/{part}.csv", ids.join(one_hot(rows, FINDINGS_2023, extra=True)))
    tasks = {
        "1": tuple(name for name in FINDINGS_2024 if name not in TASK_3),
        "2": tuple("Normal" if name == "No Finding" else name for name in FINDINGS_2023),
        "3": TASK_3,
    }
    for task, findings in tasks.items():
        name = "train_labeled" if part == "train" else f"{part}_labeled_task{task}"
        if part != "train" or task == "1":
            _put(root / f"cxr-lt-2024/{name}.csv", ids.join(one_hot(rows, findings, extra=True)))


def _put(file: Path, table: pd.DataFrame) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    """The images of the collection."""
    return entries()


@pytest.fixture(scope="session")
def jpg(tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame) -> Path:
    """The collection as JPEG files with all its tables and lists. Tests only read it."""
    root = tmp_path_factory.mktemp("mimic-cxr-jpg")
    write_images(root, table)
    write_tables(root, table)
    write_lists(root, table)
    return root


@pytest.fixture(scope="session")
def dcm(tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame) -> Path:
    """The same images as DICOM files, as in MIMIC-CXR, without tables. Tests only read it."""
    root = tmp_path_factory.mktemp("mimic-cxr")
    write_images(root, table[table.index % 8 == 0], dicom=True)
    return root
