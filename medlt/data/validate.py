"""What is wrong with a manifest, and with the files behind it, before any of it is trained on."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medlt.data.dicom.guard import Unreadable
from medlt.data.images import read_image
from medlt.data.manifest import SPLITS, Manifest
from medlt.types import InputError

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Problem:
    """One line for the user. A fatal one stops a run; the others are worth knowing."""

    what: str
    fatal: bool


@dataclass(frozen=True)
class Report:
    """`counts`: a row a split and finding (positive, negative, unknown). `unreadable`: uid, code, reason a bad file.

    `all_zero` rows have every finding, the no-finding column included, at 0; `unlabelled` rows know none.
    """

    rows: int
    patients: int
    counts: pd.DataFrame
    unreadable: pd.DataFrame
    all_zero: int
    unlabelled: int
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """True if nothing would stop a run."""
        return not any(p.fatal for p in self.problems)

    @property
    def failures(self) -> int:
        """Unreadable files and fatal problems; 0 means the manifest can be used as it is."""
        return len(self.unreadable) + sum(p.fatal for p in self.problems)

    def told(self) -> dict[str, Any]:
        """Everything as JSON knows it."""
        counts = {s: self.counts.loc[s].to_dict("index") for s in self.counts.index.unique("split")}
        return {
            "rows": self.rows,
            "patients": self.patients,
            "all_zero": self.all_zero,
            "unlabelled": self.unlabelled,
            "counts": counts,
            "unreadable": self.unreadable.to_dict("records"),
            "problems": [{"what": p.what, "fatal": p.fatal} for p in self.problems],
            "passed": self.passed,
        }

    def table(self) -> Group:
        """For a terminal: counts as positive / negative / unknown a split, then the problems."""
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
        marks = [Text(f"{'stop' if p.fatal else 'note'}: {p.what}") for p in self.problems]
        return Group(table, *(marks or [Text("no problem found")]))


def validate(manifest: Manifest, workers: int = 1) -> Report:
    """Look at labels and files; nothing is raised. Every file is decoded once, by `workers` threads."""
    labels = manifest.labels()
    failures = scan(manifest, workers)
    zero = int((labels == 0).all(axis=1).sum())
    unknown = int(np.isnan(labels).all(axis=1).sum())
    return Report(
        rows=len(manifest.rows),
        patients=int(manifest.rows["patient_id"].nunique()),
        counts=pd.concat({s: manifest.split(s).counts() for s in manifest.rows["split"].unique()}, names=["split"]),
        unreadable=failures,
        all_zero=zero,
        unlabelled=unknown,
        problems=(
            *_told(manifest, failures),
            *_about("with every finding, no-finding included, at 0", zero),
            *_about("without any known label", unknown),
        ),
    )


def scan(manifest: Manifest, workers: int = 1) -> pd.DataFrame:
    """The rows whose file is missing or cannot be read: columns uid, code, reason, in the manifest's order.

    `workers` are threads, as the decoders let go of the interpreter and a hospital's disk is the slower part.
    """
    pairs = [(uid, str(manifest.file(uid))) for uid in manifest.rows.index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # here too: filters belong to the process, readers in threads undo each other's
        with ThreadPoolExecutor(max(1, workers)) as pool:
            told = list(pool.map(_unreadable, pairs))
    return pd.DataFrame([t for t in told if t is not None], columns=["uid", "code", "reason"])


def _unreadable(pair: tuple[str, str]) -> tuple[str, str, str] | None:
    uid, path = pair
    try:
        read_image(Path(path))
    except InputError as error:
        return uid, error.code if isinstance(error, Unreadable) else "bad_input", str(error)
    return None


def _told(manifest: Manifest, failures: pd.DataFrame) -> tuple[Problem, ...]:
    """What would stop a run: no readable file, no train rows, a finding nobody has. Some bad files would not."""
    problems = []
    if len(failures):
        told = f"{len(failures)} of {len(manifest.rows)} files cannot be read; first: {failures['reason'].iloc[0]}"
        problems.append(Problem(told, fatal=len(failures) == len(manifest.rows)))
    try:
        manifest.where(~manifest.rows.index.to_series().isin(failures["uid"])).require_positives()
    except InputError as error:
        problems.append(Problem(str(error), fatal=True))
    return tuple(problems)


def _about(what: str, count: int) -> tuple[Problem, ...]:
    return (Problem(f"{count} row(s) {what}; check the label table", fatal=False),) if count else ()
