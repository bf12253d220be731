"""Layout `cxr-lt`: the CXR-LT challenges of 2023 (26 findings) and 2024 (45), over MIMIC-CXR-JPG.

PhysioNet cxr-lt-iccv-workshop-cvamd 2.0.0 (doi 10.13026/ryj9-x506). `cxr-lt-2023/`: train.csv, development.csv,
test.csv. `cxr-lt-2024/`: labels.csv with all 45 findings and a split column; train_labeled.csv,
development_labeled_task<K>.csv and test_labeled_task<K>.csv with the findings of task 1 (40), 2 (26) or 3 (5). All
have one row per image: dicom_id, subject_id, study_id, ViewPosition, fpath. Numbers: Lin et al., arXiv 2506.07984.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medlt.data.layouts import converted, tree
from medlt.data.layouts.layout_result import PARTS, Draft, LayoutResult, finish
from medlt.data.layouts.lists import unread
from medlt.data.layouts.mimic_cxr_lt import IDS, OWN, labelled, own_tables, with_views
from medlt.data.layouts.options import CxrLtOptions
from medlt.data.layouts.reading import few, known_findings, only_table, read_table, require
from medlt.types import InputError

FINDINGS_2023 = (
    "Atelectasis",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fracture",
    "Hernia",
    "Infiltration",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
)
FINDINGS_2024 = tuple(
    sorted(
        {
            *(f for f in FINDINGS_2023 if f != "No Finding"),
            *("Adenopathy", "Azygos Lobe", "Clavicle Fracture", "Fissure", "Granuloma", "Hydropneumothorax"),
            *("Infarction", "Kyphosis", "Lobar Atelectasis", "Normal", "Pulmonary Embolism", "Pulmonary Hypertension"),
            *("Rib Fracture", "Round(ed) Atelectasis", "Tuberculosis"),
            *("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis"),
        }
    )
)
"""2024 calls No Finding Normal. The last five are the findings of task 3."""


def cxr_lt(src: Path, options: CxrLtOptions) -> LayoutResult:
    """Read the folder `src` with the tables, and with the images unless `images` is given. Raises InputError."""
    files = tree.listing(src)
    root = options.images or src
    image_files = tree.listing(root) if root != src else files
    release = options.release or _release(files, src)
    source = _year_2023(files, src) if release == "2023" else _year_2024(files, src, options.task)
    known = FINDINGS_2023 if release == "2023" else FINDINGS_2024
    rows, findings = labelled(source, known, src)
    pictures = converted.pictures(root, image_files)
    rows, notes = with_views(rows, own_tables([*tree.paths(src, files), *tree.paths(root, image_files)]), pictures)
    name = f"CXR-LT {release}" + (f", task {options.task}" if release == "2024" else "")
    draft = Draft(tree.by_stem(rows, pictures), findings, root, src, notes, labels=name)
    return finish(draft, options)


def _release(files: list[str], src: Path) -> str:
    names = {f.rsplit("/", 1)[-1].removesuffix(".gz") for f in files}
    releases = [
        y for y, name in (("2023", "train.csv"), ("2024", "train_labeled.csv"), ("2024", "labels.csv")) if name in names
    ]
    if len(set(releases)) != 1:
        if releases:
            raise InputError(f"{src}: holds the tables of 2023 and 2024; choose one with --release")
        strange = unread(files, "mimic", OWN, converted.TABLES)
        seen = f"; seen and not understood: {few(strange)}" if strange else ""
        raise InputError(f"{src}: holds no CXR-LT table{seen}; check SRC")
    return releases[0]


def _year_2023(files: list[str], src: Path) -> pd.DataFrame:
    names = {"train": "train.csv", "development": "development.csv", "test": "test.csv"}
    return _together(_tables(files, src, names, "cxr-lt-2023"), FINDINGS_2023)


def _year_2024(files: list[str], src: Path, task: str) -> pd.DataFrame:
    if task == "all":
        return _every(files, src)
    names = {part: f"{part}_labeled_task{task}.csv" for part in ("development", "test")}
    if task == "3":
        every = _every(files, src)
        train = every[every["split"].str.lower() == "train"]
        return _together(_tables(files, src, names, "cxr-lt-2024"), FINDINGS_2024, train)
    return _together(_tables(files, src, {"train": "train_labeled.csv", **names}, "cxr-lt-2024"), FINDINGS_2024)


def _every(files: list[str], src: Path) -> pd.DataFrame:
    table = _tables(files, src, {"all": "labels.csv"}, "cxr-lt-2024").get("all")
    if table is None:
        raise InputError(f"{src}: no labels.csv of CXR-LT 2024, the table of all findings; choose --task 1 or 2")
    source = read_table(table, IDS)
    require(source, (*IDS, "split"), table)
    return source


def _tables(files: list[str], src: Path, names: Mapping[str, str], folder: str) -> dict[str, Path]:
    """Return {part: table}; of several tables with one name, those in the release's own folder count."""
    tables = {}
    for part, name in names.items():
        paths = [src / f for f in files if f.rsplit("/", 1)[-1].removesuffix(".gz") == name]
        if own := [p for p in paths if folder in p.parts] or paths:
            tables[part] = only_table(own)
    return tables


def _together(tables: Mapping[str, Path], known: tuple[str, ...], train: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one table with `split` and the findings of all parts. Raises InputError on a part without labels."""
    parts = [] if train is None else [train]
    for part, table in tables.items():
        source = read_table(table, IDS).assign(split=PARTS[part])
        if not known_findings(source.columns, known):
            raise InputError(f"{table}: holds no labels; put the labelled table of the final release in its place")
        parts.append(source)
    if not parts:
        raise InputError("no table of this release and task is below SRC; check SRC and --task")
    return pd.concat(parts, join="inner", ignore_index=True)
