"""Reads the side of a finding from the text of its report into the columns `side_FINDING` of a manifest.

The rule is small, and prefers no side to a wrong one. A sentence counts if it names the finding without a
negation before it and exactly one of left and right. The finding has a side if all sentences that count name the same
one, and if no sentence names both. Findings of organs that are not paired have none.

The text stays in its table: a manifest holds "left" or "right" (of the patient), and nothing else of a report.

    table   CSV, plain or gzipped: uid, study_id or study, and one or more of TEXT (mimic_cxr_sectioned.csv of
            MIMIC-CXR has study, findings and impression)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medlt.data.columns import SIDE, region_columns
from medlt.data.layouts import LayoutResult
from medlt.data.layouts.reading import read_table
from medlt.data.manifest import Manifest
from medlt.types import InputError

TEXT = ("report", "text", "findings", "impression")
KEYS = ("uid", "study_id", "study")
UNPAIRED = frozenset(
    ("cardiomegaly", "enlarged cardiomediastinum", "hernia", "no finding", "normal", "pneumomediastinum",
     "support devices", "support device", "tortuous aorta", "calcification of the aorta", "edema")
)  # fmt: skip
NAMES = {
    "atelectasis": r"atelecta(?:sis|ses|tic)",
    "consolidation": r"consolidat\w+",
    "effusion": r"effusions?",
    "pleural effusion": r"effusions?",
    "fracture": r"fractur\w+",
    "infiltration": r"infiltrat\w+",
    "lung lesion": r"lesions?",
    "lung opacity": r"opaci\w+",
    "mass": r"mass(?:es)?",
    "nodule": r"nodul\w+",
    "pleural thickening": r"pleural thickening",
    "pneumoperitoneum": r"pneumoperitoneum|free (?:intraperitoneal )?air",
}
"""Finding, in lower case -> what a report calls it. Other findings go by their own name, with an s or without."""
SENTENCE = re.compile(r"(?<=[a-z\d)])[.;:](?=\s|$)|\n\s*\n", re.IGNORECASE)
NEGATION = re.compile(r"\b(?:no|not|without|free of|negative for|resolved|resolution of|rather than|rule out|r/o)\b")
BOTH = re.compile(r"\b(?:bilateral(?:ly)?|both|biapical|bibasilar|bibasal)\b")
ONE = re.compile(r"\b(left|right)\b")


def side_in(text: str, finding: str) -> str:
    """Return "left" or "right" if the text names the finding as present on that side alone, else ""."""
    name = re.sub(r"[\W_]+", " ", finding).strip().lower()
    if name in UNPAIRED:
        return ""
    term = re.compile(rf"\b(?:{NAMES.get(name, re.escape(name) + 's?')})\b")
    sides: set[str] = set()
    for sentence in SENTENCE.split(text.lower()):
        line = re.sub(r"\s+", " ", sentence)
        if (named := term.search(line)) and not NEGATION.search(line[: named.start()]):
            sides |= {"left", "right"} if BOTH.search(line) else _one(ONE.findall(line))
    return sides.pop() if len(sides) == 1 else ""


def _one(sides: Iterable[str]) -> set[str]:
    """Return the side that a sentence names; nothing if it names none or two, of which one may be of something else."""
    return named if len(named := set(sides)) == 1 else set()


def with_sides(manifest: Manifest, table: Path) -> Manifest:
    """Return the rows with a column `side_FINDING` for each finding with a side in the reports of `table`.

    A report counts for the rows where the finding is present. Columns that the rows have stay where a report has no
    side. Raises InputError for a table without a key that the rows have too, without text, or without any of the rows.
    """
    reports = _reports(manifest, Path(table))
    rows = manifest.rows.copy()
    for finding in (name for name in manifest.findings if name != manifest.no_finding):
        present = (rows[finding] == 1) & reports.notna()
        sides = pd.Series("", rows.index, dtype=object)
        sides[present] = [side_in(text, finding) for text in reports[present]]
        column = f"{SIDE}{finding}"
        if column in rows:
            sides = sides.where(sides != "", rows[column])
        if column in rows or (sides != "").any():
            rows[column] = sides.where(sides.notna() & (sides != ""), None)
    return Manifest(rows, manifest.findings, manifest.root)


def add_sides(result: LayoutResult, table: Path) -> LayoutResult:
    """Return what a layout read, with the sides in the reports of `table`, and a note that counts them.

    Raises InputError as `with_sides`.
    """
    manifest = with_sides(result.manifest, table)
    columns = region_columns(manifest.rows, manifest.findings, SIDE)
    counts = {finding: int(manifest.rows[column].notna().sum()) for finding, column in columns.items()}
    each = (
        ", ".join(f"{finding} {count}" for finding, count in counts.items())
        or "none; no report names one by the rule of medlt.data.sides"
    )
    return replace(result, manifest=manifest, notes=(*result.notes, f"images with the side of a finding: {each}"))


def _reports(manifest: Manifest, table: Path) -> pd.Series:
    """Return the text of each row's report, NaN where there is none."""
    read = read_table(table, None)
    key = next((name for name in KEYS if name in read), None)
    texts = [name for name in TEXT if name in read]
    if key is None or not texts:
        raise InputError(
            f"{table}: is no table of reports; give a column {' or '.join(KEYS)}, and a column {' or '.join(TEXT)}"
        )
    own = manifest.rows.index.to_series() if key == "uid" else manifest.rows.get("study_id")
    if own is None:
        raise InputError(
            f"{table}: names its reports by {key}, and the images have no column study_id; name them by uid"
        )
    joined = read[texts].fillna("").astype(str).agg(".\n\n".join, axis=1)
    by_key = joined.groupby(_plain(read[key])).agg(".\n\n".join)
    made = _plain(own).map(by_key).astype(object)
    if not made.notna().any():
        raise InputError(f"{table}: no report is of an image of this collection; check its column {key}")
    return made.where(made.notna(), np.nan)


def _plain(names: pd.Series) -> pd.Series:
    """Return names as text; studies without the s of their files and the .0 of a column with gaps."""
    text = names.astype(str).str.strip().str.removesuffix(".0")
    return text.str.removeprefix("s") if names.name in ("study", "study_id") else text
