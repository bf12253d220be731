"""The published figures against scikit-learn, and in cases that can be counted by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from medlt.metrics.benchmark import benchmark_difference, benchmark_values, published_decisions

NAMES = ("a", "b", "c", "d")
GROUPS = {"head": ("a",), "medium": ("b",), "tail": ("c", "d")}


def figures(truth: np.ndarray, scores: np.ndarray, single: bool, patients: list[str] | None = None) -> pd.DataFrame:
    """The table by (metric, group)."""
    owners = patients or [str(row) for row in range(len(truth))]
    made = benchmark_values(
        truth, scores, owners, NAMES, GROUPS, single=single, n_bootstrap=200, rng=np.random.default_rng(1)
    )
    return made.set_index(["metric", "group"])


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.asarray(np.eye(len(NAMES))[classes])


def test_single_label_by_hand() -> None:
    """Recalls 2/2, 1/2, 0/1 and 1/1; F1 of a: TP 2, FP 1 -> 4/5; b: TP 1, FN 1 -> 2/3; c: 0; d: TP 1, FP 1 -> 2/3."""
    truth = one_hot(np.array([0, 0, 1, 1, 2, 3]))
    scores = one_hot(np.array([0, 0, 1, 0, 3, 3]))[None]
    made = figures(truth, scores, single=True)["value"]
    assert made["multi-class balanced accuracy", "all"] == pytest.approx((1 + 1 / 2 + 0 + 1) / 4)
    assert made["multi-class balanced accuracy", "head"] == 1
    assert made["multi-class balanced accuracy", "tail"] == pytest.approx(1 / 2)
    assert made["macro F1", "all"] == pytest.approx((4 / 5 + 2 / 3 + 0 + 2 / 3) / 4)
    assert made["macro F1", "medium"] == pytest.approx(2 / 3)


def test_single_label_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    classes, scores = rng.integers(0, 4, 300), rng.dirichlet(np.ones(4), (3, 300))
    scores[:, np.arange(300), classes] += 0.3
    chosen = scores.argmax(-1)
    made = figures(one_hot(classes), scores, single=True)["value"]
    expected = [balanced_accuracy_score(classes, one) for one in chosen]
    assert made["multi-class balanced accuracy", "all"] == pytest.approx(np.mean(expected))
    expected = [f1_score(classes, one, average="macro") for one in chosen]
    assert made["macro F1", "all"] == pytest.approx(np.mean(expected))
    tail = [f1_score(classes, one, labels=[2, 3], average="macro") for one in chosen]
    assert made["macro F1", "tail"] == pytest.approx(np.mean(tail))


def test_a_class_that_the_test_set_lacks_is_left_out_as_in_scikit_learn() -> None:
    classes = np.array([0, 0, 1, 2])
    scores = one_hot(np.array([0, 1, 1, 3]))[None]
    made = figures(one_hot(classes), scores, single=True)["value"]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(classes, scores[0].argmax(-1))
    assert made["multi-class balanced accuracy", "all"] == pytest.approx(expected)


def test_multi_label_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    truth = (rng.random((400, 4)) < (0.4, 0.2, 0.1, 0.05)).astype(float)
    scores = np.clip(0.3 * truth + 0.7 * rng.random((2, 400, 4)), 0, 1)
    made = figures(truth, scores, single=False)["value"]
    macro = {"average": "macro"}
    for name, expected in (
        ("mAP", [average_precision_score(truth, one, **macro) for one in scores]),
        ("mAUC", [roc_auc_score(truth, one, **macro) for one in scores]),
        ("mF1", [f1_score(truth, one >= 0.5, **macro) for one in scores]),
    ):
        assert made[name, "all"] == pytest.approx(np.mean(expected))
    assert made["mAP", "tail"] == pytest.approx(
        np.mean([average_precision_score(truth[:, 2:], one[:, 2:], **macro) for one in scores])
    )


def test_decisions_are_those_of_each_task() -> None:
    scores = np.array([[0.5, 0.49, 0.6], [0.2, 0.3, 0.1]])
    np.testing.assert_array_equal(published_decisions(scores, single=False), [[1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(published_decisions(scores, single=True), [[0, 0, 1], [0, 1, 0]])


def test_patients_are_resampled_not_images() -> None:
    """Ten equal images of each of forty patients have the interval of one each, not a narrower one."""
    rng = np.random.default_rng(3)
    classes, scores = np.tile(np.arange(4), 10), rng.dirichlet(np.ones(4), (2, 40))
    scores[:, np.arange(40), classes] += 0.2
    owners = [str(row) for row in range(40)]
    once = figures(one_hot(classes), scores, True, owners)
    many = figures(one_hot(np.tile(classes, 10)), np.tile(scores, (1, 10, 1)), True, owners * 10)
    pd.testing.assert_frame_equal(once[["value", "low", "high"]], many[["value", "low", "high"]])
    inside = once.dropna()
    assert ((inside["low"] < inside["value"]) & (inside["value"] < inside["high"])).all()


def test_a_difference_is_that_of_the_values() -> None:
    rng = np.random.default_rng(4)
    classes = rng.integers(0, 4, 200)
    better, worse = (rng.dirichlet(np.ones(4), (3, 200)) for _ in range(2))
    better[:, np.arange(200), classes] += 0.6
    owners = [str(row // 2) for row in range(200)]
    made = benchmark_difference(
        one_hot(classes), better, worse, owners, NAMES, GROUPS, single=True, n_bootstrap=200,
        rng=np.random.default_rng(5),
    ).set_index(["metric", "group"])  # fmt: skip
    values = [figures(one_hot(classes), scores, True, owners)["value"] for scores in (better, worse)]
    pd.testing.assert_series_equal(made["value"], values[0] - values[1])
    assert made.loc[("multi-class balanced accuracy", "all"), "low"] > 0
