"""The published figures of arms: balanced rows alone, the groups of the benchmark, and differences of the primary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from medlt.classify.sets import TrainingSet
from medlt.evaluation.arms import ArmScores, ExperimentRows
from medlt.evaluation.benchmark import benchmark_record, benchmark_table, published_groups
from medlt.evaluation.verdict import score_table

N, NAMES = 40, ("Mass", "Hernia")
OPTIONS = {"n_bootstrap": 100, "seed": 0}


def scored(rows: ExperimentRows, single: bool) -> ArmScores:
    """Three seeds of two arms; the truth of `rows` has 0, 1 or 2 findings a row, or one if `single`."""
    draw = np.random.default_rng(0)
    truth = np.eye(2)[draw.integers(0, 2, N)] if single else rows.test.labels
    scores = {arm: draw.dirichlet([1, 1], (3, N)) for arm in ("real", "duplicated for x", "x")}
    return ArmScores(scores, truth, rows.patients, NAMES, single=single)


def figure(table: pd.DataFrame, **where: str) -> float:
    """The only value of the rows that match."""
    for name, value in where.items():
        table = table[table[name] == value]
    (value,) = table["value"]
    return float(value)


def test_balanced_rows_are_a_test_set_of_their_own(rows: ExperimentRows) -> None:
    balanced = np.arange(N) % 3 == 0
    arms, marked = scored(rows, single=True), replace(rows, balanced=balanced)
    table = benchmark_table(marked, arms, ("x", "duplicated for x"), **OPTIONS)
    sizes = table.groupby("test_set")["images"].unique()
    assert {name: list(sizes[name]) for name in sizes.index} == {"test": [N], "balanced test": [balanced.sum()]}
    name = "multi-class balanced accuracy"
    for test_set, chosen in (("test", np.ones(N, bool)), ("balanced test", balanced)):
        values = {}
        for arm, scores in arms.scores.items():
            classes = arms.truth[chosen].argmax(1)
            expected = np.mean([balanced_accuracy_score(classes, one[chosen].argmax(1)) for one in scores])
            values[arm] = figure(table, test_set=test_set, arm=arm, control="", metric=name, group="all")
            assert values[arm] == pytest.approx(expected)
        given = {"test_set": test_set, "arm": "x", "control": "duplicated for x", "metric": name, "group": "all"}
        assert figure(table, **given) == pytest.approx(values["x"] - values["duplicated for x"])


@pytest.mark.parametrize(("marks", "names"), [(None, {"test"}), (False, {"test"}), (True, {"balanced test"})])
def test_equal_test_sets_are_listed_once(rows: ExperimentRows, marks: bool | None, names: set[str]) -> None:
    marked = replace(rows, balanced=None if marks is None else np.full(N, marks))
    assert set(benchmark_table(marked, scored(rows, single=False), None, **OPTIONS)["test_set"]) == names


def test_multi_label_figures_are_those_of_the_scores(rows: ExperimentRows) -> None:
    arms = scored(rows, single=False)
    table = benchmark_table(rows, arms, None, **OPTIONS)
    scores = score_table(arms, rows.groups)
    for figures, metric in (("mAP", "AP"), ("mAUC", "AUROC")):
        own = scores[(scores["arm"] == "x") & (scores["metric"] == metric) & (scores["finding"] == "macro")]
        assert figure(table, arm="x", metric=figures, group="all") == pytest.approx(own["value"].mean())
    expected = np.mean([average_precision_score(rows.test.labels, one, average="macro") for one in arms.scores["x"]])
    assert figure(table, arm="x", metric="mAP", group="all") == pytest.approx(expected)


def test_groups_are_the_published_ones_whatever_the_targets(rows: ExperimentRows) -> None:
    """1001, 1000, 100 and 99 train images: head, medium, medium, tail; the targets of the run say otherwise."""
    names, counts = ("a", "b", "c", "No Finding"), (1001, 1000, 100, 99)
    labels = np.zeros((1001, 4), np.float32)
    for column, count in enumerate(counts):
        labels[:count, column] = 1
    train = TrainingSet(
        rows.train.images[:1].expand(1001, -1, -1, -1), labels, np.ones(1001, np.float32),
        tuple(f"r{n}" for n in range(1001)),
    )  # fmt: skip
    wide = TrainingSet(rows.val.images, np.zeros((30, 4), np.float32), rows.val.weights, rows.val.uids)
    test = TrainingSet(rows.test.images, np.zeros((40, 4), np.float32), rows.test.weights, rows.test.uids)
    own = {"head": names[:1], "medium": (), "tail": names[1:3]}
    changed = replace(rows, train=train, val=wide, test=test, findings=names, groups=own)
    grouping = published_groups(changed)
    assert [grouping.of[name] for name in names] == ["head", "medium", "medium", "tail"]
    assert grouping.rule == "head > 1000, tail < 100 train positives"


def test_the_record_is_of_all_findings_and_holds_no_nan(rows: ExperimentRows) -> None:
    arms = scored(rows, single=False)
    lost = replace(arms, truth=np.zeros((N, 2)))  # no positive: nothing has a value
    record = benchmark_record(rows, benchmark_table(rows, lost, None, **OPTIONS))
    assert record["tail"] == ["Mass"]  # two of six train rows, against three with Hernia
    assert {one["metric"] for one in record["figures"]} == {"mAP", "mAUC", "mF1"}
    assert all(one["value"] is None for one in record["figures"])
    assert "group" not in record["figures"][0]
