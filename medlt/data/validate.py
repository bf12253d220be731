"""Validates a manifest and its files before training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medlt.data.dicom.guard import Unreadable
from medlt.data.images import read_image
from medlt.data.manifest import SPLITS, Manifest
from medlt.data.regions import Regions
from medlt.data.views import laterals
from medlt.metrics.confounding import associations
from medlt.types import InputError

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Problem:
    """One line for the user. A fatal problem stops a run; the others are warnings."""

    what: str
    fatal: bool


@dataclass(frozen=True)
class ValidationReport:
    """Result of `validate`.

    `counts`: one row per split and finding (positive, negative, unknown). `unreadable`: uid, code and reason of each
    bad file. `all_zero`: rows whose every finding, no-finding included, is 0. `unlabelled`: rows without a known label.
    `regions`: finding -> number of images with a mask or a box of it.
    """

    rows: int
    patients: int
    counts: pd.DataFrame
    unreadable: pd.DataFrame
    all_zero: int
    unlabelled: int
    regions: Mapping[str, int]
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """Return True if no problem is fatal."""
        return not any(p.fatal for p in self.problems)

    @property
    def failures(self) -> int:
        """Return the number of unreadable files and fatal problems; 0 if the manifest can be used as it is."""
        return len(self.unreadable) + sum(p.fatal for p in self.problems)

    def summary(self) -> dict[str, Any]:
        """Return the whole report as values that JSON can hold."""
        counts = {s: self.counts.loc[s].to_dict("index") for s in self.counts.index.unique("split")}
        return {
            "rows": self.rows,
            "patients": self.patients,
            "all_zero": self.all_zero,
            "unlabelled": self.unlabelled,
            "regions": dict(self.regions),
            "counts": counts,
            "unreadable": self.unreadable.to_dict("records"),
            "problems": [{"what": p.what, "fatal": p.fatal} for p in self.problems],
            "passed": self.passed,
        }

    def table(self) -> Group:
        """Return the report for a terminal: positive / negative / unknown counts per split, then the problems."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        splits = [s for s in SPLITS if s in self.counts.index.unique("split")]
        table = Table(
            "finding", *splits, title=f"{self.rows} images of {self.patients} patients (present / absent / ?)"
        )
        for finding in self.counts.index.unique("finding"):
            rows = [self.counts.loc[(s, finding)] for s in splits]
            table.add_row(finding, *(f"{r['positive']} / {r['negative']} / {r['unknown']}" for r in rows))
        if self.regions:
            known = ", ".join(f"{finding} {count}" for finding, count in self.regions.items())
            table.caption = f"images with a mask or a box: {known}"
        marks = [Text(f"{'stop' if p.fatal else 'note'}: {p.what}") for p in self.problems]
        return Group(table, *(marks or [Text("no problem")]))


def validate(manifest: Manifest, workers: int = 1) -> ValidationReport:
    """Check labels and files and return a report; raises nothing. `workers` threads decode every file once."""
    labels = manifest.labels()
    regions, wrong = _regions(manifest)
    failures = scan(manifest, workers)
    zero = int((labels == 0).all(axis=1).sum())
    unknown = int(np.isnan(labels).all(axis=1).sum())
    return ValidationReport(
        rows=len(manifest.rows),
        patients=int(manifest.rows["patient_id"].nunique()),
        counts=pd.concat({s: manifest.split(s).counts() for s in manifest.rows["split"].unique()}, names=["split"]),
        unreadable=failures,
        all_zero=zero,
        unlabelled=unknown,
        regions={finding: len(regions.known(finding)) for finding in regions.findings},
        problems=(
            *_fatal_problems(manifest, failures),
            *_label_problems("with every finding, no-finding included, at 0", zero),
            *_label_problems("without any known label", unknown),
            *wrong,
            *(Problem(note, fatal=False) for note in laterals(manifest.rows["view"])),
            *_confounded(manifest),
        ),
    )


def scan(manifest: Manifest, workers: int = 1) -> pd.DataFrame:
    """Return the rows whose file is missing or unreadable: columns uid, code, reason, in the manifest's order.

    `workers` is a number of threads: the decoders release the interpreter lock, and network disks are slow.
    """
    pairs = [(uid, str(manifest.file(uid))) for uid in manifest.rows.index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also here: filters are global, and reader threads reset each other's
        with ThreadPoolExecutor(max(1, workers)) as pool:
            results = list(pool.map(_unreadable, pairs))
    return pd.DataFrame([r for r in results if r is not None], columns=["uid", "code", "reason"])


def _unreadable(pair: tuple[str, str]) -> tuple[str, str, str] | None:
    uid, path = pair
    try:
        read_image(Path(path))
    except InputError as error:
        return uid, error.code if isinstance(error, Unreadable) else "bad_input", str(error)
    return None


def _fatal_problems(manifest: Manifest, failures: pd.DataFrame) -> tuple[Problem, ...]:
    """Return the problems of files and train rows. Only some unreadable files are not fatal."""
    problems = []
    if len(failures):
        text = f"{len(failures)} of {len(manifest.rows)} files cannot be read; first: {failures['reason'].iloc[0]}"
        problems.append(Problem(text, fatal=len(failures) == len(manifest.rows)))
    try:
        manifest.where(~manifest.rows.index.to_series().isin(failures["uid"])).require_positives()
    except InputError as error:
        problems.append(Problem(str(error), fatal=True))
    return tuple(problems)


def _label_problems(what: str, count: int) -> tuple[Problem, ...]:
    return (Problem(f"{count} row(s) {what}; check the label table", fatal=False),) if count else ()


def _confounded(manifest: Manifest) -> tuple[Problem, ...]:
    """Return a warning for each finding that goes with the source, site, device or view of its images."""
    every = associations(manifest.labels(), manifest.findings, manifest.rows)
    return tuple(Problem(one.sentence(), fatal=False) for one in every if one.confounded)


def _regions(manifest: Manifest) -> tuple[Regions, tuple[Problem, ...]]:
    """Return the masks and boxes, and their problems; the first mask that cannot be used is fatal."""
    try:
        regions = Regions.of(manifest)
        regions.check()
    except InputError as error:
        return Regions(), (Problem(str(error), fatal=True),)
    notes = []
    for finding in regions.findings:
        absent = int((manifest.rows.loc[list(regions.known(finding)), finding] == 0).sum())
        if absent:
            text = f"{absent} image(s) with a mask or a box of {finding} whose label is 0; check the label table"
            notes.append(Problem(text, fatal=False))
    return regions, tuple(notes)
