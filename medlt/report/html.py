"""Writes report.html, one self-contained file, and report.json with the same numbers.

Both depend on the content of the run folder alone. Times and memory differ between equal runs and stay in run.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.files import write_json, write_text
from medlt.report import benchmark, heading, picture, summary, verdict
from medlt.report.arms import Experiment
from medlt.report.collect import Collected, collect
from medlt.report.conditions import conditions
from medlt.report.figures import Forest, Interval, bars, forest, limits, spark
from medlt.report.formatting import environment, flat, plain, script, without_places
from medlt.report.gallery import checked
from medlt.report.gallery import section as gallery
from medlt.report.guidance import section as guidance
from medlt.report.introspection import anonymous, section
from medlt.report.localisation import section as localisation
from medlt.report.readings import readings

if TYPE_CHECKING:
    import pandas as pd

REJECTIONS = 50
PRINTED = 140
"""Letters that the headings of a printed table may need side by side; beyond it names of arms stand upright."""
COMPARED = ("arms", "comparisons", "reliability", "subgroups", "benchmark")
"""Tables of the comparison that report.json repeats."""

CODE_METRICS = {
    "mean_max_probability": ("mean max probability", "above 0.8: the code is sparse"),
    "entropy": ("entropy", "falls during training"),
    "agreement": ("teacher–student agreement", "rises over the generations"),
    "reconstruction_l1": ("reconstruction L1", "lower is better"),
    "val_macro_ap": ("validation macro AP", "of the classifier on codes"),
    "probe_ap": ("linear probe AP", "of a linear classifier on codes"),
    "topographic_similarity": (
        "topographic similarity",
        "distances between codes follow distances between labels",
    ),
}


def _intervals(table: pd.DataFrame) -> list[Interval]:
    return [
        Interval(str(name), float(r.difference), float(r.low), float(r.high), str(r.verdict), bold, str(bold))
        for name, r in zip(table.index, table.itertuples(), strict=True)
        for bold in [name in summary.GROUPS]
    ]


def _forests(run: Collected) -> list[tuple[str, str, str, Forest]]:
    """Return (metric, arm, control, plot) of every comparison; all plots of a metric have one scale."""
    plots = []
    pairs = summary.pairs(run)
    for metric in summary.METRICS:
        rows = {pair: _intervals(summary.comparison(run, pair, metric)) for pair in pairs}
        scale = limits([row for part in rows.values() for row in part])
        plots += [(metric, *pair, forest(part, scale)) for pair, part in rows.items() if part]
    return plots


def _table(run: Collected) -> dict[str, Any] | None:
    """Return the table by finding: arms, their roles, metrics, and rows; None without scores."""
    if run.scores is None:
        return None
    scores, counts = summary.scores(run), summary.counts(run)
    arms, known = summary.in_order(run, run.scores["arm"]), summary.roles(run)
    metrics = summary.ordered(set(run.scores["metric"]), summary.METRICS)
    cells = scores.to_dict("index")
    rows = [
        {
            "name": name,
            "group": name in summary.GROUPS,
            "counts": dict(counts.loc[name]) if name in counts.index else None,
            "cells": [[cells.get((name, metric, arm)) for arm in arms] for metric in metrics],
        }
        for name in summary.names(run, set(run.scores["finding"]))
    ]
    named = {"arms": arms, "roles": [known.get(arm, "real") for arm in arms], "metrics": metrics, "rows": rows}
    return named | {"narrow": len(metrics) * sum(max(7, *map(len, arm.split())) for arm in arms) > PRINTED}


def _code_metrics(run: Collected) -> list[dict[str, Any]]:
    """Return one entry per column of sparse_code_metrics.parquet: its name, values and sparkline."""
    if run.sparse_code_metrics is None:
        return []
    table = run.sparse_code_metrics.sort_values("generation", kind="stable")
    known = [name for name in CODE_METRICS if name in table]
    return [
        {
            "name": CODE_METRICS[name][0],
            "hint": CODE_METRICS[name][1],
            "values": list(table[name]),
            "spark": spark(table[name]),
        }
        for name in known
    ] + [{"name": "generation", "hint": "", "values": _generations(table), "spark": None}]


def _generations(table: pd.DataFrame) -> list[str]:
    """Return the number of each generation, and whether it is collapsed or the one that is used."""
    marks = [(name, mark) for name, mark in (("collapsed", "collapsed"), ("chosen", "used")) if name in table]
    rows = table.to_dict("records")
    return [" ".join([str(row["generation"]), *(mark for name, mark in marks if row[name])]) for row in rows]


def _training(run: Collected) -> list[dict[str, Any]]:
    """Return loss and validation loss of the denoiser: first and last value, sparkline."""
    if run.training is None:
        return []
    losses = {"loss": run.training["loss"], "validation loss (fixed noise, EMA weights)": run.training["validation"]}
    known = {name: column.dropna() for name, column in losses.items() if column.notna().any()}
    return [
        {"name": name, "first": column.iloc[0], "last": column.iloc[-1], "spark": spark(list(column))}
        for name, column in known.items()
    ]


def _rejections(run: Collected, real_images: bool = True) -> dict[str, Any] | None:
    """Return what was rejected and why; without `real_images`, reasons lose what may be the uid of a real image."""
    if run.checks is None:
        return None
    rows = summary.rejected(run)
    return {
        "images": int(rows["uid"].nunique()),
        "of": int(run.checks["uid"].nunique()),
        "reasons": summary.rejections_by_reason(run).to_dict("records"),
        "rows": [checked(row, real_images) for row in rows.head(REJECTIONS).to_dict("records")],
        "total": len(rows),
    }


def _context(run: Collected, real_images: bool) -> dict[str, Any]:
    """Return all variables of the template."""
    counts = summary.counts(run)
    experiment = None if run.arms is None else Experiment.of(run)
    method = run.settings.get("method", {}).get("kind", "fusion")
    images, uncertain = gallery(run, real_images), section(run.introspection, run.gallery, run.file, real_images)
    real = real_images and bool((images or {}).get("real") or (uncertain or {}).get("pairs"))
    return heading.of_run(run, real) | {
        "run": run,
        "config_text": without_places(run.config),
        "sizes": summary.sizes(run),
        "patients": summary.patients(run),
        "seeds": summary.seeds(run),
        "deciding": summary.deciding(run),
        "cautions": summary.cautions(run),
        "forests": _forests(run),
        "table": _table(run),
        "conditions": conditions(run),
        "benchmark": benchmark.section(run.benchmark, run.verdict),
        "reliability": experiment and verdict.reliability(experiment),
        "subgroups": experiment and verdict.subgroups(experiment),
        "bars": bars(list(counts.index), list(counts["real"]), list(counts["added"])) if len(counts) else None,
        "gallery": images,
        "real_images": real_images,
        "script": script(),
        "training": _training(run),
        "rejections": _rejections(run, real_images),
        "code_metrics": _code_metrics(run),
        "metrics_now": flat(run.run.get("metrics", {})),
        "failures": [] if run.failures is None else run.failures.sort_values("uid").to_dict("records"),
        "privacy": summary.privacy(run),
        "fused": method == "fusion",
        "verified": not run.private or method in ("fusion", "edit"),
        "guidance": guidance(run.calibration),
        "introspection": uncertain,
        "localisation": localisation(run.localisation),
        "readings": readings(run.folder, real_images),
    }


def as_json(run: Collected) -> dict[str, Any]:
    """Return the numbers of the report; missing parts are None."""
    keep = ("versions", "device", "seed", "counts", "digests", "metrics")
    tables = {"scores": summary.scores(run).reset_index(), "counts": summary.counts(run).reset_index()}
    rejections, known = _rejections(run), anonymous(run.introspection)
    numbers = {
        "verdict": run.verdict,
        "cautions": summary.cautions(run),
        "sizes": summary.sizes(run),
        "seeds": summary.seeds(run),
        **{name: None if (t := getattr(run, name)) is None else t.to_dict("records") for name in COMPARED},
        "scores": None if run.scores is None else tables["scores"].to_dict("records"),
        "label_counts": tables["counts"].to_dict("records"),
        "rejections": rejections and {name: rejections[name] for name in ("images", "of", "reasons")},
        "sparse_code_metrics": None if run.sparse_code_metrics is None else run.sparse_code_metrics.to_dict("records"),
        "privacy": summary.privacy(run),
        "guidance": None if run.calibration is None else run.calibration.to_dict("records"),
        "introspection": None if known is None else known.to_dict("records"),
        "localisation": None if run.localisation is None else run.localisation.to_dict("records"),
        "run": {name: run.run[name] for name in keep if name in run.run},
    }
    return dict(plain(numbers))


def render(run: Collected, *, real_images: bool = True) -> str:
    """Return the report as HTML text.

    Without `real_images` strips have their synthetic tiles alone, there are no real neighbours, no rejected copies of
    real images, and no uids of parents.
    """
    return environment().get_template("template.html.j2").render(_context(run, real_images))


def write_report(run: Path, *, real_images: bool | None = None) -> Path:
    """Write RUN/report.html and RUN/report.json atomically, and return the path of the first.

    real_images: whether the page may hold real images, the parents of synthetic ones. None: as an earlier report of the
    folder, if that was written without them; else for all but private runs. A folder of `medlt evaluate` gets the page
    of an experiment and RUN/verdict.svg. Equal folder contents give equal bytes. Raises InputError if `run` is no run
    folder or a file in it cannot be read.
    """
    folder, collected = Path(run), collect(run)
    real = _may_hold_real(collected) if real_images is None else real_images
    if not collected.is_experiment:
        page, numbers = render(collected, real_images=real), as_json(collected)
    else:
        page, numbers = verdict.render(collected, real_images=real), verdict.as_json(collected)
        write_text(folder / "verdict.svg", picture.draw(collected))
    write_json(folder / "report.json", numbers | {"real_images": real})
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _may_hold_real(run: Collected) -> bool:
    """Return whether a report may hold real images if nobody says so: a report without them stays without them."""
    try:
        previous = json.loads((run.folder / "report.json").read_text())["real_images"]
    except (OSError, ValueError, KeyError, TypeError):
        previous = True
    return not run.private and previous is not False
