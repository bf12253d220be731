"""The label lists of NIH-CXR-LT and MIMIC-CXR-LT, under all their published names.

2022, one finding per image (Holste et al., arXiv 2208.13365; github.com/VITA-Group/LongTailCXR and the LongTailCXR
folder of the NIH release): `nih-cxr-lt_single-label_train.csv`, `..._balanced-val.csv`, `..._test.csv`,
`..._balanced-test.csv`, and the same with `mimic`. The balanced test list is a part of the test list.

2023, several findings per image (Holste et al., arXiv 2308.09180; PruneCXR, and miccai-2023_mimic-cxr-lt in the CXR-LT
release of PhysioNet): `miccai2023_nih-cxr-lt_labels_train.csv`, `..._val.csv`, `..._test.csv`, and the same with
`mimic`; the code before publication has `121722_` in place of `miccai2023_`.

The code of LongTailCXR reads `nih-lt_single-label_<split>.csv` and `mimic-lt_single-label_<split>.csv`: the
part `-cxr` may be missing. Any prefix, '_' for '-', capitals and a further `.gz` are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from medlt.data.layouts.layout_result import PARTS
from medlt.data.layouts.reading import few, only_table, read_table
from medlt.types import InputError

Parts = Mapping[str, Path]
_NAME = (
    r"(?:.*[-_])?{}(?:[-_]cxr)?[-_]lt[-_](?P<kind>single[-_]label|labels)[-_]"
    r"(?P<part>train|(?:balanced[-_])?(?:val|test))\.csv(?:\.gz)?"
)
_TABLE = re.compile(r".+\.(?:csv|tsv|xlsx?)(?:\.gz)?", re.IGNORECASE)
_NO_LABELS = re.compile(
    r"(?:cxr-(?:record|study|provider)-list|mimic_cxr_sectioned|bbox_list_2017\w*|nih-cxr-lt_image_ids)\.csv(?:\.gz)?",
    re.IGNORECASE,
)
"""Tables of the same releases that hold no labels of images."""
_ORDER = ("train", "balanced-val", "val", "test", "balanced-test")


def lists(files: Iterable[str], folder: Path, dataset: str) -> dict[str, Parts]:
    """Return {release: {part: table}} of the lists of `dataset` ('nih' or 'mimic') among `files` of `folder`."""
    name = re.compile(_NAME.format(dataset), re.IGNORECASE)
    releases: dict[str, dict[str, list[Path]]] = {}
    for file in files:
        if match := name.fullmatch(file.rsplit("/", 1)[-1]):
            release = "2023" if match["kind"].lower() == "labels" else "2022"
            part = match["part"].lower().replace("_", "-")
            releases.setdefault(release, {}).setdefault(part, []).append(folder / file)
    return {r: {p: only_table(paths) for p, paths in parts.items()} for r, parts in releases.items()}


def unread(files: Iterable[str], dataset: str, *known: re.Pattern[str]) -> tuple[str, ...]:
    """Return the tables among `files` that are neither lists of `dataset` nor named by one of the `known` patterns."""
    names = (re.compile(_NAME.format(dataset), re.IGNORECASE), _NO_LABELS, *known)
    tables = (file for file in files if _TABLE.fullmatch(file))
    return tuple(file for file in tables if not any(name.fullmatch(file.rsplit("/", 1)[-1]) for name in names))


def not_read(strange: Sequence[str]) -> tuple[str, ...]:
    """Return a note that names the tables in `strange`, if there is one."""
    return (f"{len(strange)} table(s) not read, as the layout does not know them: {few(strange)}",) if strange else ()


def one_release(
    releases: Mapping[str, Parts], wanted: str | None, folder: Path, strange: Sequence[str] = (), instead: str = ""
) -> tuple[str, Parts]:
    """Return the wanted release, or the only one. Raises InputError if it is absent, or if there are several.

    The error names the tables in `strange`, and `instead`, the options for the other labels that there are.
    """
    if wanted is None and len(releases) > 1:
        raise InputError(f"{folder}: holds the lists of {' and '.join(sorted(releases))}; choose one with --release")
    release = wanted or next(iter(releases), "")
    if release not in releases:
        seen = f"; seen and not understood: {few(strange)}" if strange else ""
        what = f"no label lists of release {release or '2022 or 2023'}{seen}"
        raise InputError(f"{folder.absolute()}: {what}; check SRC{instead and f', or use {instead}'}")
    return release, releases[release]


def read_lists(parts: Parts, text: tuple[str, ...]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return all lists as one table with `split`, and `balanced_test` if there is such a list; notes on missing lists.

    Rows that are in the test list and the balanced test list occur once.
    """
    tables = {part: read_table(parts[part], text).assign(split=PARTS[part]) for part in _ORDER if part in parts}
    key = next((c for c in ("dicom_id", "id") if c in next(iter(tables.values()))), None)
    if key is None:
        raise InputError(f"{next(iter(parts.values()))}: no column dicom_id or id; is this the published list?")
    balanced = tables.pop("balanced-test", None)
    if balanced is not None:
        known = tables["test"][key] if "test" in tables else pd.Series(dtype="str")
        tables["balanced-test"] = balanced[~balanced[key].isin(known)]
    rows = pd.concat(tables.values(), ignore_index=True)
    if balanced is not None:
        rows["balanced_test"] = rows[key].isin(balanced[key])
    absent = [s for s in ("train", "val", "test") if s not in set(rows["split"])]
    return rows, tuple(f"no {split} list" for split in absent)
