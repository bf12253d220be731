"""What the top of a page states: the verdict in words, what the run is, and whether the page holds real images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medlt.report import summary
from medlt.report.collect import Collected

if TYPE_CHECKING:
    import pandas as pd

    from medlt.report.arms import Experiment

MEANINGS = {
    "helps": "The synthetic images help",
    "harms": "The synthetic images harm",
    "no evidence": "No evidence that the synthetic images help",
    "cannot see": "Cannot see whether the synthetic images help",
}
LISTED = 8
"""Findings that the line about a run names."""

REAL = (
    "This page holds real training images. Keep it where such images may be kept; "
    "medlt report RUN --no-real-images writes it without them."
)
DRAWN = "This page holds training images, but no image of a patient: a program drew them."
NONE = "This page holds no real image."


def meaning(verdict: Mapping[str, Any] | None) -> str:
    """Return the verdict as a heading; the word of verdict.json itself if it is another one."""
    word = str((verdict or {}).get("verdict") or "no verdict")
    return MEANINGS.get(word, word.capitalize())


def of_run(run: Collected, real: bool) -> dict[str, str]:
    """Return the lines at the top of the page of a run: meaning, about, holds."""
    return {"meaning": meaning(run.verdict), "about": about_run(run), "holds": holds(run, real)}


def about_run(run: Collected) -> str:
    """Return what the run made, for which findings and from what, as far as its tables hold it."""
    from medlt.data.columns import is_synthetic

    if run.manifest is None:
        return ""
    rows = run.manifest
    made, sizes = rows[is_synthetic(rows)], summary.sizes(run)
    method = run.settings.get("method", {})
    side, kind = method.get("image_size") or run.settings.get("size"), method.get("kind")
    parts = [counted(len(made), "synthetic image")]
    parts += [f" of {side} × {side} px"] if isinstance(side, int) else []
    parts += [f", by method {str(kind).replace('_', ' ')}"] if kind else []
    parts += [f": {_findings(made)}"] if "finding" in made and len(made) else []
    source = "phantom image" if summary.is_drawn(run) else "real image"
    trained = f"{counted(sizes['train_images'], source)}{_of_patients(run, sizes, 'train')}"
    return f"{''.join(parts)}. The train split has {trained}."


def _of_patients(run: Collected, sizes: Mapping[str, int], split: str) -> str:
    key = f"{split}_patients"
    return f" of {counted(sizes[key], summary.patients(run)[:-1])}" if key in sizes else ""


def _findings(made: pd.DataFrame) -> str:
    """Return the target findings with their numbers of images, the most frequent first."""
    counts = made["finding"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    named = [f"{str(name).replace('_', ' ')} {count}" for name, count in counts.head(LISTED).items()]
    more = [f"{len(counts) - LISTED} more findings"] if len(counts) > LISTED else []
    return ", ".join([*named, *more])


def about_experiment(experiment: Experiment) -> str:
    """Return how many arms the experiment has, of which sources, and what they were tested on."""
    run, verdict = experiment.run, experiment.run.verdict or {}
    sources = sorted({str(name) for name in experiment.arms["source"] if name})
    parts = [counted(len(experiment.arms), "arm")]
    parts += [f", {counted(n, 'training seed')} each" for n in [summary.seeds(run)] if n]
    parts += [f"; synthetic images from {', '.join(sources).replace('_', ' ')}"] if sources else []
    tested = verdict.get("test_images"), verdict.get("test_patients")
    if all(isinstance(n, int) for n in tested):
        word = summary.patients(run)[:-1]
        parts += [f"; tested on {counted(int(tested[0] or 0), 'real image')} of {counted(int(tested[1] or 0), word)}"]
    return "".join(parts) + "."


def counted(n: int, word: str) -> str:
    """Return a number with its word, in the plural unless it is one."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def holds(run: Collected, real: bool) -> str:
    """Return the line that says whether a page holds real images."""
    return NONE if not real else DRAWN if summary.is_drawn(run) else REAL
