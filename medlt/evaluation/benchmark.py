"""The figures of published benchmarks (`medlt.metrics.benchmark`) for every arm, by the benchmark's own rules.

Head, medium and tail are those of the benchmark: more than 1000, 100 to 1000 and fewer than 100 positive train images,
the label of no finding included; in a smaller collection thirds, as `rule` says. NIH-CXR-LT and MIMIC-CXR-LT 2022
publish figures of a balanced part of the test list: it is a test set of its own here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medlt.evaluation.arms import ArmScores, ExperimentRows
from medlt.metrics.benchmark import ALL, COLUMNS, benchmark_difference, benchmark_values
from medlt.metrics.groups import GROUPS, Grouping, group
from medlt.rng import numpy_generator

TEST, BALANCED = "test", "balanced test"
HEAD = ("test_set", "images", "arm", "control")


def published_groups(rows: ExperimentRows) -> Grouping:
    """Return the groups of the benchmark, whatever the targets of the run are."""
    return group(rows.positives())


def benchmark_table(
    rows: ExperimentRows, tested: ArmScores, pair: tuple[str, str] | None, *, n_bootstrap: int, seed: int
) -> pd.DataFrame:
    """Return the figures: columns `HEAD` and those of `medlt.metrics.benchmark`.

    Each arm has rows with control "", its own figures; `pair`, the primary arm and its control, also has rows with the
    control's name, the differences. Each test set has all of them.
    """
    grouping = published_groups(rows)
    groups = {name: members for name in GROUPS if (members := grouping.members(name))}
    parts = []
    for name, chosen in _test_sets(rows).items():
        common: dict[str, Any] = {
            "truth": np.asarray(tested.truth, np.float64)[chosen],
            "patients": [patient for patient, here in zip(tested.patients, chosen, strict=True) if here],
            "findings": tested.findings, "groups": groups, "single": tested.single, "n_bootstrap": n_bootstrap,
        }  # fmt: skip
        for arm, scores in tested.scores.items():
            rng = numpy_generator(seed, "benchmark", name, arm)
            made = benchmark_values(scores=scores[:, chosen], rng=rng, **common)
            parts.append(made.assign(test_set=name, images=int(chosen.sum()), arm=arm, control=""))
        if pair is not None:
            first, second = (tested.scores[one][:, chosen] for one in pair)
            rng = numpy_generator(seed, "benchmark", name, *pair)
            made = benchmark_difference(scores=first, control=second, rng=rng, **common)
            parts.append(made.assign(test_set=name, images=int(chosen.sum()), arm=pair[0], control=pair[1]))
    return pd.concat(parts, ignore_index=True)[[*HEAD, *COLUMNS]]


def _test_sets(rows: ExperimentRows) -> dict[str, np.ndarray]:
    """Return name -> bool [N], which test rows are in it."""
    whole = np.ones(len(rows.test), bool)
    if rows.balanced is None or not rows.balanced.any():
        return {TEST: whole}
    return {BALANCED: rows.balanced} if rows.balanced.all() else {TEST: whole, BALANCED: rows.balanced}


def benchmark_record(rows: ExperimentRows, table: pd.DataFrame) -> dict[str, Any]:
    """Return the entry of verdict.json: the groups with their rule, and the figures over all findings."""
    grouping = published_groups(rows)
    entries: Sequence[Mapping[str, Any]] = table[table["group"] == ALL].drop(columns="group").to_dict("records")
    known = [{key: None if pd.isna(value) else value for key, value in one.items()} for one in entries]
    return {"rule": grouping.rule, **{name: list(grouping.members(name)) for name in GROUPS}, "figures": known}
