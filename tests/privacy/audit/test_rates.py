"""Shares and areas against what is known of them in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from medlt.privacy.audit.rates import area, by_patient, share


@given(st.integers(0, 60), st.integers(1, 60))
def test_exact_interval_is_where_the_tails_hold_a_fortieth_each(count: int, of: int) -> None:
    count = min(count, of)
    found = share(count, of, method="exact")
    assert found.low <= found.value == count / of <= found.high
    if count:
        assert stats.binom.sf(count - 1, of, found.low) == pytest.approx(0.025, rel=1e-4)
    if count < of:
        assert stats.binom.cdf(count, of, found.high) == pytest.approx(0.025, rel=1e-4)


def test_wilson_solves_its_own_equation() -> None:
    """|p - k/n| = z sqrt(p (1 - p) / n) at both ends."""
    found = share(7, 40)
    for end in found[1:]:
        assert abs(end - 7 / 40) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 40), rel=1e-5)
    assert np.isnan(share(0, 0)).all()


def test_area_is_sklearns_and_its_interval_covers() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    score = rng.normal(size=300) + truth
    found = area(truth, score, np.arange(300), np.random.default_rng(1))
    assert found.value == pytest.approx(roc_auc_score(truth, score))
    assert found.low < stats.norm.cdf(1 / np.sqrt(2)) < found.high
    assert 0.06 < found.high - found.low < 0.16


def test_rows_of_one_patient_are_drawn_together() -> None:
    """Each row ten times over: the interval stays as wide where they belong to one patient, and shrinks if not."""
    rng = np.random.default_rng(0)
    truth, score = np.arange(40) % 2 == 0, rng.normal(size=40) + (np.arange(40) % 2 == 0)
    once = area(truth, score, np.arange(40), np.random.default_rng(1))
    own = area(truth.repeat(10), score.repeat(10), np.arange(40).repeat(10), np.random.default_rng(1))
    apart = area(truth.repeat(10), score.repeat(10), np.arange(400), np.random.default_rng(1))
    assert own == pytest.approx(once)
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_a_class_that_is_empty_has_no_area() -> None:
    assert np.isnan(area(np.ones(5), np.arange(5.0), np.arange(5), np.random.default_rng(0))).all()


def test_means_by_patient() -> None:
    means, of = by_patient(np.array([1.0, 2.0, 6.0]), ["b", "a", "a"])
    assert means.tolist() == [4.0, 1.0]
    assert of.tolist() == [1, 0, 0]
