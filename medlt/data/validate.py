"""Validates a manifest and its files before training, and predicts what an experiment on it can show."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medlt.data.columns import more
from medlt.data.dicom.guard import Unreadable
from medlt.data.duplicates import ImageHash, duplicates, image_hash
from medlt.data.images import read_levels
from medlt.data.manifest import SPLITS, Manifest
from medlt.data.regions import Regions
from medlt.data.views import laterals
from medlt.metrics.auroc_power import smallest_visible_gains
from medlt.metrics.confounding import associations
from medlt.remote import AnyFile
from medlt.types import InputError, Progress

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

SHOWN = 10
"""Duplicates in the table of a terminal; --json has all."""
BATCH = 256
"""Files in work at a time, so that a large manifest needs no large queue."""


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
    `regions`: finding -> number of images with a mask or a box of it. `gains`: finding -> smallest gain in AUROC that
    the test images can show, NaN for none (`medlt.metrics.auroc_power`). `duplicates`: images that another patient has
    in another split (`medlt.data.duplicates`).
    """

    rows: int
    patients: int
    counts: pd.DataFrame
    unreadable: pd.DataFrame
    all_zero: int
    unlabelled: int
    regions: Mapping[str, int]
    gains: Mapping[str, float]
    duplicates: pd.DataFrame
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """Return True if no problem is fatal."""
        return not any(p.fatal for p in self.problems)

    @property
    def failures(self) -> int:
        """Return the number of unreadable files, duplicates and fatal problems; 0: usable as it is."""
        return len(self.unreadable) + len(self.duplicates) + sum(p.fatal for p in self.problems)

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
            "smallest_gain": dict(self.gains),
            "duplicates": self.duplicates.to_dict("records"),
            "unreadable": self.unreadable.to_dict("records"),
            "problems": [{"what": p.what, "fatal": p.fatal} for p in self.problems],
            "passed": self.passed,
        }

    def table(self) -> Group:
        """Return the report for a terminal: counts per split, what test images can show, duplicates, problems."""
        from rich.console import Group
        from rich.text import Text

        lines = [Text(f"{'stop' if p.fatal else 'note'}: {p.what}") for p in self.problems]
        pairs = [self._duplicates()] if len(self.duplicates) else []
        return Group(self._counts(), *pairs, *map(Text, self._gain()), *(lines or [Text("no problem")]))

    def _counts(self) -> Table:
        from rich.table import Table

        splits = [s for s in SPLITS if s in self.counts.index.unique("split")]
        title = f"{self.rows} images of {self.patients} patients (present / absent / ?)"
        table = Table("finding", *splits, "gain", title=title)
        for finding in self.counts.index.unique("finding"):
            rows = [self.counts.loc[(s, finding)] for s in splits]
            gain = self.gains[finding]
            counts = (f"{r['positive']} / {r['negative']} / {r['unknown']}" for r in rows)
            table.add_row(finding, *counts, f"{gain:.2f}" if math.isfinite(gain) else "none")
        if self.regions:
            known = ", ".join(f"{finding} {count}" for finding, count in self.regions.items())
            table.caption = f"images with a mask or a box: {known}"
        return table

    def _gain(self) -> list[str]:
        """Return the line below the column gain."""
        known = sorted((gain, name) for name, gain in self.gains.items() if math.isfinite(gain))
        if not known:
            return []
        (least, best), (most, worst) = known[0], known[-1]
        shown = f"from {least:.2f} ({best}) to {most:.2f} ({worst})"
        return [f"gain: the smallest gain in AUROC that the test images can show: {shown}"]

    def _duplicates(self) -> Table:
        from rich.table import Table

        count = len(self.duplicates)
        title = f"{count} image(s) that another patient has in another split"
        table = Table("image", "split", "same as", "split", "kind", title=title)
        for row in self.duplicates.head(SHOWN).itertuples():
            table.add_row(row.uid, row.split, row.other_uid, row.other_split, row.kind)
        if count > SHOWN:
            table.caption = f"the first {SHOWN}; --json lists all"
        return table


def validate(
    manifest: Manifest, workers: int = 1, progress: Progress | None = None, images: ImagesRead | None = None
) -> ValidationReport:
    """Check labels and files and return a report; raises nothing. `workers` threads decode every file once.

    images: what `medlt.data.pixels.read_into` returned for this manifest; no file is then decoded.
    """
    labels, rows = manifest.labels(), manifest.rows
    regions, wrong = _regions(manifest)
    images = images or read_all(manifest, workers, progress)
    zero = int((labels == 0).all(axis=1).sum())
    unknown = int(np.isnan(labels).all(axis=1).sum())
    counts = pd.concat({s: manifest.split(s).counts() for s in rows["split"].unique()}, names=["split"])
    pairs = duplicates(rows, images.hashes)
    return ValidationReport(
        rows=len(rows),
        patients=int(rows["patient_id"].nunique()),
        counts=counts,
        unreadable=images.unreadable,
        all_zero=zero,
        unlabelled=unknown,
        regions={finding: len(regions.known(finding)) for finding in regions.findings},
        gains={str(k): float(v) for k, v in smallest_visible_gains(manifest.split("test").counts()).items()},
        duplicates=pairs,
        problems=(
            *_fatal_problems(manifest, images.unreadable),
            *_one_sided(counts),
            *_shared(pairs),
            *_label_problems("with every finding, no-finding included, at 0", zero),
            *_label_problems("without any known label", unknown),
            *wrong,
            *(Problem(note, fatal=False) for note in laterals(manifest.rows["view"])),
            *_confounded(manifest),
        ),
    )


@dataclass(frozen=True)
class ImagesRead:
    """What was read of a manifest's images.

    unreadable: columns uid, code, reason in the manifest's order; hashes: uid -> hash of the others.
    """

    unreadable: pd.DataFrame
    hashes: Mapping[str, ImageHash]


def scan(manifest: Manifest, workers: int = 1) -> pd.DataFrame:
    """Return the rows whose file is missing or unreadable: columns uid, code, reason, in the manifest's order."""
    return read_all(manifest, workers).unreadable


def read_all(manifest: Manifest, workers: int = 1, progress: Progress | None = None) -> ImagesRead:
    """Decode every file once; keep a hash of each image, or why it cannot be read.

    `workers` is a number of threads: the decoders release the interpreter lock, and network disks are slow.
    """
    uids = [str(uid) for uid in manifest.rows.index]
    hashes: dict[str, ImageHash] = {}
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also here: filters are global, and reader threads reset each other's
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for start in range(0, len(uids), BATCH):
                part = uids[start : start + BATCH]
                for uid, result in zip(part, pool.map(_read, [manifest.file(uid) for uid in part]), strict=True):
                    if isinstance(result, ImageHash):
                        hashes[uid] = result
                    else:
                        failures.append((uid, *result))
                if progress:
                    progress("images", start + len(part), len(uids))
    return ImagesRead(pd.DataFrame(failures, columns=["uid", "code", "reason"]), hashes)


def _read(path: AnyFile) -> ImageHash | tuple[str, str]:
    """Return the hash of an image, or the code and the reason why it cannot be read."""
    try:
        return image_hash(read_levels(path))
    except InputError as error:
        return error.code if isinstance(error, Unreadable) else "bad_input", str(error)


def _one_sided(counts: pd.DataFrame) -> tuple[Problem, ...]:
    """Return a problem for findings that are never absent, or never present, in a split.

    Fatal in train and test: nothing can be learnt, or measured. Val only chooses between checkpoints. A finding that
    is never present in train is a problem of `Manifest.require_positives`.
    """
    problems = []
    for split in (s for s in SPLITS if s in counts.index.unique("split")):
        part = counts.loc[split]
        always = list(part.index[(part["negative"] == 0) & (part["positive"] > 0)])
        never = list(part.index[part["positive"] == 0]) if split != "train" else []
        for names, state, way in (
            (always, "never absent", "if a blank label means absent, make the manifest with --blank negative"),
            (never, "never present", "if two patients have it, split again with `medlt manifest ... --resplit`"),
        ):
            if names:
                what = f"finding {names[0]} is {state} in split {split}{more(names)}; {way}, or leave it out"
                problems.append(Problem(what, fatal=split != "val"))
    return tuple(problems)


def _shared(pairs: pd.DataFrame) -> tuple[Problem, ...]:
    """Return the problem of images that another patient has in another split."""
    if not len(pairs):
        return ()
    equal = int((pairs["kind"] == "equal").sum())
    counts = ", ".join(f"{int(n)} of {split}" for split, n in pairs["split"].value_counts().items())
    what = f"{len(pairs)} image(s) ({counts}) are also under another patient in train or val: {equal} equal, "
    what += f"{len(pairs) - equal} nearly equal; give both one patient_id, or leave one out"
    return (Problem(what, fatal=False),)


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
