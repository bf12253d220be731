"""The page of an experiment (`medlt evaluate`): the verdict, then the numbers behind it. Also these numbers as JSON."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from medlt.report import arms, heading, labels, summary
from medlt.report import benchmark as benchmarks
from medlt.report.arms import Experiment
from medlt.report.collect import Collected
from medlt.report.conditions import conditions
from medlt.report.curves import Axis, Chart, DataPoint, Series, chart, fit_axis
from medlt.report.figures import Forest, forest, limits
from medlt.report.formatting import environment, flat, plain, script, without_places
from medlt.report.gallery import section as gallery

ATTRIBUTES = ("view", "sex", "age", "source")
KINDS = ("real", "control", "synthetic")
"""CSS classes of the real arm, the control and the primary arm in charts."""


def _forests(experiment: Experiment) -> list[tuple[str, Forest]]:
    """Return a plot for AP and one for AUROC: the primary arm minus its control, for groups and findings."""
    if (primary := experiment.primary) is None:
        return []
    plots = []
    for metric in summary.METRICS:
        named = {
            name: experiment.difference(primary, experiment.control(primary), name, metric)
            for name in experiment.findings()
        }
        bold = {name: name in summary.GROUPS for name in named}
        marks = [arms.mark(name, row, bold[name], str(bold[name])) for name, row in named.items() if row is not None]
        plots += [(metric, forest(marks, limits(marks)))] if marks else []
    return plots


def per_finding(experiment: Experiment) -> dict[str, Any] | None:
    """Return the primary arm beside its control: {arm, control, rows}; a row has name, group, scores, test."""
    primary = experiment.primary
    if primary is None or not experiment.findings():
        return None
    control = experiment.control(primary)
    rows = []
    for name in experiment.findings():
        scores = {
            m: [experiment.score(arm, name, m) for arm in (control, primary)]
            for m in (experiment.metric, *experiment.others)
        }
        test = experiment.difference(primary, control, name)
        rows.append({"name": name, "group": name in summary.GROUPS, "scores": scores, "test": test})
    return {"arm": primary, "control": control, "rows": rows}


def ratio_curves(experiment: Experiment) -> list[dict[str, Any]]:
    """Return, for each family of arms that differ in ratio, the metric of arm and control, and their difference."""
    curves = []
    for family in arms.families(experiment):
        lines = [_by_ratio(experiment, family, "control"), _by_ratio(experiment, family, "synthetic")]
        gain = [_gain(row) for row in family]
        across = Axis(*_ratios([row["ratio"] for row in family]), log=True)
        zero = Series(
            "no difference", "reference", [DataPoint(across.low, 0.0), DataPoint(across.high, 0.0)], marked=False
        )
        ends = [end for p in gain for end in (p.y, p.low, p.high)]
        value = [end for line in lines for p in line.points for end in (p.y, p.low, p.high)]
        pair = [chart(lines, across, fit_axis(value), dodge=6.0)]
        pair += [chart([zero, Series("difference", "synthetic", gain)], across, fit_axis(ends, zero=True))]
        if not any(line.name == "synthetic images" for line in pair[0].lines):
            continue
        curves.append({"name": family[0]["label"], "arms": [row["name"] for row in family], "plots": pair})
    return curves


def _ratios(values: list[float]) -> tuple[float, float]:
    """Return the range of the axis: 0.25 to 4, or wider if a ratio lies beyond."""
    return min(0.25, *values), max(4.0, *values)


def _by_ratio(experiment: Experiment, family: list[dict[str, Any]], kind: str) -> Series:
    points = []
    for row in family:
        cell = experiment.score(row["control"] if kind == "control" else row["name"], "tail", experiment.metric)
        if cell is not None:
            mean, sd = float(cell["mean"]), float(cell["std"])
            points.append(DataPoint(row["ratio"], mean, mean - sd, mean + sd))
    return Series("duplicated real images" if kind == "control" else "synthetic images", kind, points)


def _gain(row: dict[str, Any]) -> DataPoint:
    test = row["to_control"] or {"difference": math.nan, "low": math.nan, "high": math.nan}
    return DataPoint(row["ratio"], *(float(test[key]) for key in ("difference", "low", "high")))


def reliability(experiment: Experiment) -> tuple[Chart, list[tuple[str, str, dict[str, Any] | None]]] | None:
    """Return share of positives by mean score, all findings pooled, and (kind, arm, ECE) of the arms drawn."""
    table, names = experiment.run.reliability, experiment.compared()
    if table is None:
        return None
    kinds = dict(zip(names, KINDS if len(names) > 2 else KINDS[::2], strict=False))
    pooled = table[(table["finding"] == labels.ALL) & table["arm"].isin(names)]
    columns = ["mean_score", "rate", "rate_low", "rate_high"]
    bins = {name: pooled.loc[pooled["arm"] == name, columns].to_numpy(dtype=float) for name in names}
    top = min(1.0, math.ceil(10 * max([0.1, *(v for part in bins.values() for v in part.ravel() if v == v)])) / 10)
    even = Series("calibrated", "reference", [DataPoint(0.0, 0.0), DataPoint(top, top)], marked=False)
    lines = [Series(name, kinds[name], [DataPoint(*map(float, row)) for row in bins[name]]) for name in names]
    drawn = chart([even, *lines], Axis(0.0, top), Axis(0.0, top))
    return (
        (drawn, [(kinds[n], n, experiment.score(n, "macro", "ECE")) for n in names]) if len(drawn.lines) > 1 else None
    )


def subgroups(experiment: Experiment) -> dict[str, Any] | None:
    """Return rows (attribute, value, images, patients, metric, one cell per arm); None without the table."""
    table = experiment.run.subgroups
    if table is None:
        return None
    table = table[table["arm"].isin(experiment.compared())]
    names = [name for name in experiment.compared() if name in set(table["arm"])]
    rows = []
    for attribute, metric in product(ATTRIBUTES, dict.fromkeys(table["metric"])):
        part = table[(table["attribute"] == attribute) & (table["metric"] == metric)]
        for value in dict.fromkeys(part["value"]):
            cells = {row["arm"]: row for row in part[part["value"] == value].to_dict("records")}
            first = next(iter(cells.values()))
            about = {key: first[key] for key in ("attribute", "value", "images", "patients", "metric")}
            reasons = {str(row["reason"]) for row in cells.values() if row["score"] != row["score"]}
            none = len(reasons) == 1 and all(row["score"] != row["score"] for row in cells.values())
            shown = {"cells": [cells.get(name) for name in names], "reason": next(iter(reasons)) if none else ""}
            rows.append(about | shown)
    return {"arms": names, "rows": rows} if rows else None


def _compared(run: Collected) -> int:
    """Return the number of intervals in comparisons.parquet."""
    return 0 if run.comparisons is None else int(run.comparisons["low"].notna().sum())


def context(run: Collected, whole: bool = True, real_images: bool = True) -> dict[str, Any]:
    """Return the variables of the template; without `whole` only the verdict, the differences and the table of arms."""
    experiment = Experiment.of(run)
    top = {
        "run": run,
        "whole": whole,
        "verdict": run.verdict or {},
        "meaning": heading.meaning(run.verdict),
        "patients": summary.patients(run),
        "cautions": summary.cautions(run),
        "conditions": conditions(run) if whole else None,
        "primary": experiment.primary,
        "real": experiment.real,
        "candidates": int((experiment.arms["role"] == "synthetic").sum()),
        "compared": _compared(run),
        "plots": [arms.comparison_plot(experiment), arms.comparison_plot(experiment, to_real=True)],
        "arms": arms.rows(experiment),
        "metric": experiment.metric,
        "others": experiment.others,
        "training": arms.training_settings(experiment),
    }
    return top | (_rest(experiment, real_images) if whole else {"script": None, "about": ""})


def _rest(experiment: Experiment, real_images: bool) -> dict[str, Any]:
    run = experiment.run
    images = gallery(run, real_images)
    return {
        "about": heading.about_experiment(experiment),
        "holds": heading.holds(run, bool(images and images["real"])),
        "gallery": images,
        "real_images": real_images,
        "script": script(),
        "finding_plots": _forests(experiment),
        "table": per_finding(experiment),
        "ratio_curves": ratio_curves(experiment),
        "reliability": reliability(experiment),
        "benchmark": benchmarks.section(run.benchmark, run.verdict),
        "sources": labels.sources(run),
        "subgroups": subgroups(experiment),
        "counts": run.run.get("counts", {}),
        "metrics": flat(run.run.get("metrics", {})),
        "settings": run.settings,
        "config_text": without_places(run.config),
    }


def as_json(run: Collected) -> dict[str, Any]:
    """Return the numbers of the page; missing parts are None."""
    experiment = Experiment.of(run)
    keep = ("versions", "device", "seed", "counts", "digests", "metrics")
    names = (
        "arms comparisons subgroups reliability agreement confusion filter_effect rejections fingerprints "
        "learning_curves confounding retention benchmark"
    ).split()
    tables = {name: getattr(run, name) for name in names}
    records = {name: None if table is None else table.to_dict("records") for name, table in tables.items()}
    scores = None if run.scores is None else summary.scores(run).reset_index().to_dict("records")
    more = {"verdict": run.verdict, "cautions": summary.cautions(run), "scores": scores, "primary": experiment.primary}
    return dict(plain(records | more | {"run": {name: run.run[name] for name in keep if name in run.run}}))


def render(run: Collected, *, whole: bool = True, real_images: bool = True) -> str:
    """Return the page as HTML text; without `whole` only its top, for a notebook, which runs no script.

    Without `real_images`, sources that are real images through a codec are left out.
    """
    return environment().get_template("verdict.html.j2").render(context(run, whole, real_images))
