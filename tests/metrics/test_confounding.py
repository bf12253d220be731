"""Associations with a known closed form, and AUROC within the values of a column."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association as scipys

from medlt.metrics.confounding import Association, association, associations, crosstab, usable, within_auroc
from medlt.metrics.ranking import auroc


def rows(counts: dict[str, tuple[int, int]]) -> tuple[np.ndarray, pd.Series]:
    """Labels and values with (absent, present) images of each value."""
    pairs = [(label, value) for value, each in counts.items() for label, n in enumerate(each) for _ in range(n)]
    return np.array([label for label, _ in pairs], float), pd.Series([value for _, value in pairs], dtype=object)


def measured(counts: dict[str, tuple[int, int]]) -> Association:
    found = association("f", "source", crosstab(*rows(counts)))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("counts", "v", "distance"),
    [
        ({"a": (20, 20), "b": (30, 30)}, 0.0, 0.0),
        ({"a": (0, 20), "b": (30, 0)}, 1.0, 1.0),
        ({"a": (10, 30), "b": (30, 10)}, 0.5, 0.5),  # phi = (ad - bc) / sqrt(product of the sums)
        ({"a": (90, 10), "b": (100, 0)}, np.sqrt(200 * 1000**2 / (10 * 190 * 100 * 100) / 200), 1 - 90 / 190),
    ],
)
def test_measures_have_their_closed_forms(counts: dict[str, tuple[int, int]], v: float, distance: float) -> None:
    found = measured(counts)
    assert found.cramers_v == pytest.approx(v)
    assert found.distance == pytest.approx(distance)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(sum), min_size=2, max_size=5))
def test_cramers_v_is_scipys(counts: list[tuple[int, int]]) -> None:
    table = np.array(counts)
    found = association("f", "c", pd.DataFrame(table, columns=["absent", "present"]))
    if not table.sum(0).all():
        assert found is None
        return
    assert found is not None
    assert found.cramers_v == pytest.approx(scipys(table, method="cramer"))
    assert found.cramers_v == pytest.approx(np.sqrt(chi2_contingency(table, correction=False)[0] / table.sum()))
    assert 0 <= found.distance <= 1


def test_unknown_labels_and_values_are_left_out() -> None:
    labels = np.array([0, 1, np.nan, 1, 0], float)
    table = crosstab(labels, pd.Series(["a", "a", "a", None, "b"]))
    assert table.to_dict("index") == {"a": {"absent": 1, "present": 1}, "b": {"absent": 1, "present": 0}}


@pytest.mark.parametrize(
    ("counts", "confounded"),
    [
        ({"a": (500, 186), "b": (500, 4)}, True),  # nearly all positives from one source, as many negatives from both
        ({"a": (500, 50), "b": (500, 50)}, False),
        ({"a": (950, 95), "b": (50, 5)}, False),  # one source has most of everything
        ({"a": (500, 9), "b": (500, 0)}, False),  # too few positives to say
        ({"a": (500, 10), "b": (500, 0)}, True),
    ],
)
def test_a_finding_of_one_source_is_confounded(counts: dict[str, tuple[int, int]], confounded: bool) -> None:
    found = measured(counts)
    assert found.confounded == confounded
    assert found.top_value == "a"
    assert f"{found.positives} positives" in found.sentence()


def test_every_usable_column_is_measured_and_columns_that_name_images_are_not() -> None:
    labels = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], float)
    table = pd.DataFrame(
        {
            "source": ["a", "b", "a", "b"],
            "device": ["x"] * 4,
            "site": list("abcd"),
            "view": ["PA", "AP", "AP", "AP"],
            "sex": list("FMFM"),
        }
    )
    assert usable(table) == ["source", "view"]
    found = associations(labels, ("f", "g"), table)
    assert [(one.finding, one.column) for one in found] == [
        ("f", "source"),
        ("g", "source"),
        ("f", "view"),
        ("g", "view"),
    ]
    assert [one.cramers_v for one in found[:2]] == [1.0, 1.0]


def test_a_score_that_is_the_source_says_nothing_within_sources() -> None:
    truth, values = rows({"a": (10, 30), "b": (30, 10)})
    score = (values == "a").to_numpy(float)
    assert auroc(truth, score) == pytest.approx(0.75)
    assert within_auroc(truth, score, values) == pytest.approx(0.5)
    assert within_auroc(truth, truth, values) == 1.0


def test_within_values_pairs_are_counted_one_by_one() -> None:
    draw = np.random.default_rng(0)
    truth, score = draw.integers(0, 2, 60).astype(float), draw.random(60).round(1)
    truth[0] = np.nan
    values = pd.Series(draw.choice(["a", "b", "c"], 60))
    pairs = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in range(60)
        for j in range(60)
        if truth[i] == 1 and truth[j] == 0 and values[i] == values[j]
    ]
    assert within_auroc(truth, score, values) == pytest.approx(np.mean(pairs))
    assert np.isnan(within_auroc(np.ones(3), np.ones(3), pd.Series(["a", "a", "b"])))
