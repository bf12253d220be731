"""What the verdict rests on besides its interval, as the report shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medlt.report.arms import Experiment
from medlt.report.collect import Collected
from medlt.report.curves import Axis, Chart, DataPoint, Series, chart, fit_axis

if TYPE_CHECKING:
    import pandas as pd

LIMIT = 0.7
"""Fingerprint above which an arm cannot get the verdict helps, as in `medlt.evaluation.fingerprint`."""
KINDS = ("real", "control", "synthetic")
MARKED = 12
"""Points of a learning curve up to which each has a mark."""


def conditions(run: Collected) -> dict[str, Any] | None:
    """Return the conditions of the verdict, for the template conditions.html.j2; None if verdict.json has none."""
    record = run.verdict or {}
    if "above_random" not in record or run.arms is None:
        return None
    experiment = Experiment.of(run)
    return {
        "length": record.get("training_length"),
        "above_random": record["above_random"],
        "problems": record.get("cannot_see", []),
        "confounded": record.get("confounded", []),
        "arms": _arms(experiment, record),
        "limit": LIMIT,
        "curves": _curves(experiment),
        "sources": _sources(experiment),
        "retention": [] if run.retention is None else run.retention.to_dict("records"),
    }


def _arms(experiment: Experiment, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return share, weight and fingerprint of each arm; the values tried where validation chose."""
    marks, chosen = record.get("fingerprints", {}), record.get("chosen_on_validation", {})
    rows = []
    for arm in experiment.arms.to_dict("records"):
        name = str(arm["arm"])
        added = str(arm["role"]) in ("control", "synthetic")
        share, weight = (arm.get(key) if added else None for key in ("synthetic_fraction", "synthetic_weight"))
        tried = len(chosen.get(name, {}).get("tried", []))
        rows.append({"name": name, "share": share, "weight": weight, "tried": tried, "mark": marks.get(name)})
    return rows


def _curves(experiment: Experiment) -> tuple[Chart, list[tuple[str, str]]] | None:
    """Return validation macro AP by step, mean over seeds, and (kind, name) of the arms drawn; None without
    curves of at least two points."""
    table = experiment.run.learning_curves
    if table is None or table["val_macro_ap"].isna().all():
        return None
    names = experiment.compared()
    kinds = dict(zip(names, KINDS if len(names) > 2 else KINDS[::2], strict=False)) | {"pilot": "reference"}
    points = {name: _mean(table[table["arm"] == name]) for name in kinds}
    if max(map(len, points.values())) < 2:
        return None
    lines = [Series(name, kinds[name], own, marked=len(own) <= MARKED) for name, own in points.items() if own]
    across = Axis(0.0, float(table["step"].max()))
    return chart(lines, across, fit_axis(p.y for line in lines for p in line.points)), [
        (line.kind, line.name) for line in lines
    ]


def _mean(rows: pd.DataFrame) -> list[DataPoint]:
    """Return the mean over seeds at each step that all seeds reached."""
    known = rows.dropna(subset=["val_macro_ap"])
    steps = known.groupby("step")["val_macro_ap"].agg(["mean", "count"])
    whole = steps[steps["count"] == known["seed"].nunique()]
    return [DataPoint(float(str(step)), float(value)) for step, value in whole["mean"].items()]


def _sources(experiment: Experiment) -> list[dict[str, Any]]:
    """Return the findings that go with a column, with the AUROC of the arms compared, of all pairs and within."""
    table = experiment.run.confounding
    if table is None or table.empty:
        return []
    rows = []
    for (finding, column), part in table[table["confounded"]].groupby(["finding", "column"], sort=False):
        first, by_arm = part.iloc[0], {str(row["arm"]): row for row in part.to_dict("records")}
        cells = [by_arm.get(name) for name in experiment.compared()]
        rows.append(dict(first) | {"finding": str(finding), "column": str(column), "cells": cells})
    return rows
