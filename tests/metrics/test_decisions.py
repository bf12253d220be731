"""Thresholds maximise F1 over all cuts, and decisions are measured as scikit-learn measures them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from medlt.metrics.decisions import DECISIONS, decided, decision_metrics, one_of, tally, thresholds
from medlt.metrics.ranking import macro
from medlt.types import InputError

LABELS = st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 6)), min_size=1, max_size=30)


def f1(truth: np.ndarray, said: np.ndarray) -> float:
    return float(f1_score(truth, said, zero_division=0.0))


@given(LABELS)
def test_no_cut_has_a_larger_f1_and_no_larger_cut_has_the_same(case: list[tuple[float, int]]) -> None:
    truth, score = np.array(case).T
    [cut] = thresholds(truth[:, None], score[:, None] / 7)
    known = ~np.isnan(truth)
    truth, score = truth[known], score[known] / 7
    if not truth.any():
        assert np.isnan(cut)
        return
    every = {value: f1(truth, score >= value) for value in np.unique(score)}
    assert cut == max(value for value, found in every.items() if np.isclose(found, max(every.values()), rtol=1e-12))


def test_thresholds_are_by_hand() -> None:
    truth = np.array([[1, 1, np.nan, 0], [1, 0, np.nan, 0], [0, 0, np.nan, 0], [0, 1, np.nan, np.nan]])
    scores = np.array([[0.9, 0.5, 0.1, 0.1], [0.4, 0.5, 0.1, 0.2], [0.2, 0.5, 0.1, 0.3], [0.1, 0.5, np.nan, np.nan]])
    np.testing.assert_array_equal(thresholds(truth, scores), [0.4, 0.5, np.nan, np.nan])


def test_a_score_at_the_threshold_is_positive_in_single_precision_too() -> None:
    scores = np.random.default_rng(0).random((50, 1)).astype(np.float32)
    cut = thresholds((scores > 0.7).astype(float), scores)
    assert decided(scores, cut).sum() == (scores > 0.7).sum()


def test_decided_has_every_seeds_own_threshold_and_none_without_one() -> None:
    scores = np.array([[[0.2, 0.8], [0.6, 0.1]], [[0.2, 0.8], [0.6, 0.1]]])
    said = decided(scores, np.array([[0.5, np.nan], [0.2, 0.7]]))
    np.testing.assert_array_equal(said, [[[0, np.nan], [1, np.nan]], [[1, 1], [1, 0]]])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_equals_scikit_learn_under_weights(seed: int) -> None:
    """Over random tables, so with columns that lack positives, negatives or labels; draws are repetitions of rows."""
    draw = np.random.default_rng(seed)
    truth = draw.choice([0, 1, np.nan], p=[0.5, 0.3, 0.2], size=(9, 3))
    said, owner = draw.integers(0, 2, (9, 3)).astype(float), draw.integers(0, 5, 9)
    weights = draw.integers(0, 3, (4, 5))
    found = decision_metrics(truth, said, weights, owner)
    for d, k in np.ndindex(4, 3):
        rows = np.repeat(np.arange(9), weights[d, owner])
        rows = rows[~np.isnan(truth[rows, k])]
        y, s = truth[rows, k], said[rows, k]
        positive, negative = (y == 1).any(), (y == 0).any()
        wanted = [
            recall_score(y, s) if positive else np.nan,
            balanced_accuracy_score(y, s) if positive and negative else np.nan,
            f1_score(y, s) if positive else np.nan,
        ]
        np.testing.assert_allclose(found[:, d, k], wanted, atol=1e-12)


def test_macro_sensitivity_of_one_finding_an_image_is_the_balanced_accuracy() -> None:
    """Holste et al. 2022 report scikit-learn's over all classes; a class without test images counts in neither."""
    draw = np.random.default_rng(3)
    label, scores = draw.integers(0, 6, 200), draw.normal(size=(200, 7))
    scores[np.arange(200), label] += 1.0
    truth = np.eye(7)[label]
    sensitivity = decision_metrics(truth, one_of(scores), np.ones((1, 200)))[DECISIONS.index("sensitivity"), 0]
    assert np.isnan(sensitivity[6])
    wanted = np.mean([recall_score(label == k, scores.argmax(1) == k) for k in range(6)])
    assert macro(sensitivity) == pytest.approx(wanted)
    seen = scores.argmax(1) < 6  # scikit-learn warns of a class that is only predicted
    kept = decision_metrics(truth[seen], one_of(scores[seen]), np.ones((1, seen.sum())))[0, 0]
    assert macro(kept) == pytest.approx(balanced_accuracy_score(label[seen], scores[seen].argmax(1)))


def test_one_of_is_one_even_among_equals() -> None:
    np.testing.assert_array_equal(one_of(np.array([[[0.2, 0.2, 0.1], [0, 0, 1]]])), [[[1, 0, 0], [0, 0, 1]]])
    with pytest.raises(InputError, match="NaN"):
        one_of(np.array([[np.nan, 0.1]]))


def test_a_finding_never_decided_is_nan_and_leaves_the_others() -> None:
    truth, said = np.array([[1.0, 1], [0, 0]]), np.array([[1, np.nan], [0, np.nan]])
    found = decision_metrics(truth, said, np.ones((1, 2)))[:, 0]
    np.testing.assert_array_equal(found[:, 0], [1, 1, 1])
    assert np.isnan(found[:, 1]).all()


def test_tally_counts_and_sums() -> None:
    owner, cell = np.array([0, 2, 2, 0]), np.array([1, 0, 0, 1])
    np.testing.assert_array_equal(tally(owner, cell, (3, 2)), [[0, 2], [0, 0], [2, 0]])
    np.testing.assert_array_equal(tally(owner, cell, (3, 2), np.array([1, 2, 3, -1.0])), [[0, 0], [0, 0], [5, 0]])
    np.testing.assert_array_equal(tally(owner[:0], cell[:0], (2, 2)), np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("truth", "scores", "said"),
    [
        ([[0.5]], [[0]], "0, 1 or NaN"),
        ([[1]], [[np.nan]], "not finite"),
        ([[1]], [[1, 2]], r"\[N,K\]"),
        ([1], [1], "N,K"),
    ],
)
def test_bad_input_is_told(truth: list[object], scores: list[object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        thresholds(np.array(truth), np.array(scores))
