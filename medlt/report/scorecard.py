"""The scorecard of a run: SCORECARD.md and scorecard.json, by seven criteria for synthetic medical data.

Criteria: Zamzmi et al., Commun. Eng. 4, 130 (2025), doi 10.1038/s44172-025-00450-1 (arXiv 2406.11143). Each holds what
the run has measured, read from its own files, and names what was not measured with the command that measures it. There
is no total score: the criteria have no common unit.

| criterion | question |
|---|---|
| congruence | are the images distributed like real ones? |
| coverage | do they have the variety of real ones, and every finding that was wanted? |
| constraint | do they obey what must hold for a radiograph? |
| completeness | is everything there that a user of the images needs? |
| compliance | which rules of privacy and labelling as synthetic do they keep? |
| comprehension | can a reader understand how they were made and what they are for? |
| consistency | do labels, copies and repetitions agree with one another? |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from medlt.checks.outcome import read_check
from medlt.data.columns import is_synthetic
from medlt.files import write_json, write_text
from medlt.markdown_text import cell, inline
from medlt.privacy.claims import claim
from medlt.report.collect import Collected, collect
from medlt.review.results import ReviewResults, review_results

MARKDOWN, JSON = "SCORECARD.md", "scorecard.json"
CRITERIA = ("congruence", "coverage", "constraint", "completeness", "compliance", "comprehension", "consistency")
DOCUMENTS = ("MODEL_CARD.md", "DATASHEET.md", "config.yaml", "report.html", "plan.parquet")
QUALITY = {"congruence": ("KID", "FID"), "coverage": ("recall", "coverage")}
SANITY = ("finite", "flat", "saturated")
REVIEW = "medlt review RUN --reader NAME"


@dataclass(frozen=True)
class Measure:
    """One measured value: its name, the value as text, the file it is read from; or why there is none, with a command.

    Either `value` or `missing` is "".
    """

    criterion: str
    name: str
    value: str = ""
    source: str = ""
    missing: str = ""


def scorecard(run: Path) -> list[Measure]:
    """Return the measures of a run folder, in the order of `CRITERIA`. Raises InputError for damaged files."""
    seen, readers = collect(Path(run)), review_results(Path(run))
    parts = (_quality, _coverage, _constraint, _completeness, _compliance, _comprehension, _consistency)
    measures = [one for part in parts for one in part(seen)] + list(_readers(readers))
    return sorted(measures, key=lambda one: CRITERIA.index(one.criterion))


def write_scorecard(run: Path) -> Path | None:
    """Write SCORECARD.md and scorecard.json into a run folder, in place of earlier ones; return the former.

    An experiment makes no images, so it has none: None.
    """
    if collect(Path(run)).is_experiment:
        return None
    measures = scorecard(run)
    write_text(Path(run) / MARKDOWN, markdown(measures))
    write_json(Path(run) / JSON, {"criteria": list(CRITERIA), "measures": [asdict(one) for one in measures]})
    return Path(run) / MARKDOWN


def markdown(measures: list[Measure]) -> str:
    """Return the page: a table for each criterion, then what was not measured."""
    lines = [
        "# Scorecard",
        "",
        "Seven criteria for synthetic medical data (Zamzmi et al., 2025, doi 10.1038/s44172-025-00450-1). Every value "
        "is measured on this run; there is no total score.",
    ]
    for criterion in CRITERIA:
        own = [one for one in measures if one.criterion == criterion]
        lines += ["", f"## {criterion.capitalize()}"]
        if known := [one for one in own if one.value]:
            lines += ["", "| measure | value | from |", "|---|---|---|"]
            lines += [f"| {cell(one.name)} | {cell(one.value)} | {cell(one.source)} |" for one in known]
        if missing := [f"- Not measured: {inline(one.name)}; {inline(one.missing)}." for one in own if one.missing]:
            lines += ["", *missing]
    return "\n".join(lines).rstrip() + "\n"


def _synthetic(seen: Collected) -> pd.DataFrame:
    """Return the rows of the images that were made; none if nothing is published."""
    return pd.DataFrame() if seen.manifest is None else seen.manifest[is_synthetic(seen.manifest)]


def _quality(seen: Collected) -> Iterator[Measure]:
    """Yield distances of distributions, overall, in features that had no part in the synthesis."""
    file = seen.file("quality.parquet")
    table = pd.DataFrame() if file is None else pd.read_parquet(file)
    for criterion, metrics in QUALITY.items():
        for metric in metrics:
            rows = table[(table["finding"] == "overall") & (table["metric"] == metric)] if len(table) else table
            if not len(rows):
                yield Measure(criterion, metric, missing="the run has no quality.parquet; a private run measures none")
            elif rows["value"].isna().all():
                yield Measure(criterion, metric, missing=str(rows["reason"].iloc[0]))
            else:
                row = rows.iloc[0]
                counts = f"{row['n_real']:.0f} real, {row['n_synthetic']:.0f} synthetic"
                yield Measure(criterion, metric, f"{row['value']:.3f} ({counts})", "quality.parquet")


def _coverage(seen: Collected) -> Iterator[Measure]:
    """Yield how many images of each finding were kept of those that were planned."""
    made = _synthetic(seen)
    if seen.plan is None or "finding" not in made:
        yield Measure("coverage", "images of each finding", missing="nothing is published; run `medlt augment`")
        return
    slots = (
        seen.plan.groupby("finding")["slot"].nunique() if "slot" in seen.plan else seen.plan.groupby("finding").size()
    )
    kept = made["finding"].value_counts()
    for finding, wanted in slots.items():
        yield Measure("coverage", f"{finding}: images kept", f"{kept.get(finding, 0)} of {wanted}", "manifest.parquet")


def _constraint(seen: Collected) -> Iterator[Measure]:
    """Yield the share of candidates that are sound pictures."""
    table = seen.checks
    for check in SANITY:
        rows = table[table["check"] == check] if table is not None else pd.DataFrame()
        if not len(rows):
            yield Measure("constraint", check, missing="the run has no such check")
            continue
        passed = int(rows["passed"].sum())
        yield Measure("constraint", f"candidates that pass {check}", f"{passed} of {len(rows)}", "checks.parquet")


def _completeness(seen: Collected) -> Iterator[Measure]:
    """Yield for how many images each label, view, sex and age is known."""
    made = _synthetic(seen)
    if made.empty:
        yield Measure("completeness", "labels", missing="nothing is published; run `medlt augment`")
        return
    labelled = int(made[list(seen.findings)].notna().all(axis=1).sum())
    yield Measure("completeness", "images with every label known", f"{labelled} of {len(made)}", "manifest.parquet")
    for name in ("view", "sex", "age", "seed", "run"):
        known = int(made[name].notna().sum()) if name in made else 0
        yield Measure("completeness", f"images with {name}", f"{known} of {len(made)}", "manifest.parquet")


def _compliance(seen: Collected) -> Iterator[Measure]:
    """Yield the claim of privacy, the audit, and the mark of synthetic images."""
    made = claim(seen.folder)
    reasons = f"none, for {len(made.reasons)} reasons that MODEL_CARD.md lists"
    privacy = reasons if made.epsilon is None else made.sentence.split(". ")[0]
    yield Measure("compliance", "privacy claim", privacy, "the run folder")
    yield _marked(seen)
    if seen.audit is None:
        yield Measure("compliance", "copies, membership, re-identification", missing="`medlt audit RUN` measures them")
        return
    words = {True: "no leak", False: "leak", None: "cannot conclude"}
    for one in seen.audit["results"]:
        yield Measure("compliance", f"audit, {one['name']}", words[one["passed"]], "audit.json")


def _marked(seen: Collected) -> Measure:
    """Return how many published PNG files state in a text chunk that they are synthetic."""
    made, name = _synthetic(seen), "images marked as synthetic in their file"
    files = [file for path in made.get("path", ()) if (file := seen.file(str(path))) is not None]
    if not files:
        return Measure("compliance", name, missing="no image file is published")
    marked = 0
    for file in files:
        with Image.open(file) as picture:
            marked += picture.info.get("Synthetic") == "true"
    return Measure("compliance", name, f"{marked} of {len(files)}", "images/")


def _comprehension(seen: Collected) -> Iterator[Measure]:
    """Yield which documents are there, and the verdict, which says what the images are good for."""
    present = [name for name in DOCUMENTS if seen.file(name) is not None]
    yield Measure("comprehension", "documents", ", ".join(present), "the run folder")
    if lacking := [name for name in DOCUMENTS if name not in present]:
        yield Measure("comprehension", ", ".join(lacking), missing="`medlt augment` writes them")
    if seen.verdict is None:
        yield Measure("comprehension", "whether the images help", missing="`medlt run` or `medlt evaluate` measures it")
    else:
        verdict = f"{seen.verdict['verdict']}: {seen.verdict['sentence']}"
        yield Measure("comprehension", "verdict", verdict, "verdict.json")


def _consistency(seen: Collected) -> Iterator[Measure]:
    """Yield whether labels and images agree with one another, by `medlt check`."""
    checked = read_check(seen.folder)
    if checked is None:
        yield Measure("consistency", "labels, copies, fingerprint", missing="`medlt check RUN` measures them")
        return
    for one in checked.outcomes:
        if one.status == "not measured":
            yield Measure("consistency", one.check, missing=one.conclusion.removeprefix("not measured: "))
        else:
            yield Measure("consistency", one.check, f"{one.status}: {one.conclusion}", "check.json")


def _readers(results: ReviewResults | None) -> Iterator[Measure]:
    """Yield what readers see: whether images pass for real, are plausible, and show their finding."""
    wanted = {"origin": ("congruence", "guesses of real or synthetic that are right", "all"),
              "plausibility": ("constraint", "synthetic images that readers call plausible", "synthetic"),
              "presence": ("consistency", "labels that readers agree with", "synthetic")}  # fmt: skip
    for question, (criterion, name, kind) in wanted.items():
        row: Any = None if results is None else results.rate(question, kind=kind)
        if row is None:
            yield Measure(criterion, name, missing=f"`{REVIEW}` measures it")
            continue
        value = f"{row['count']} of {row['of']}: {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        yield Measure(criterion, name, value, "review/")
