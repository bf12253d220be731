"""p values of the bootstrap agree with the interval, and Holm's correction keeps its promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.metrics.several import holm, two_sided


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.01, 0.02, 0.03, 0.005], [0.03, 0.04, 0.04, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.04, np.nan, 0.01], [0.04, np.nan, 0.02]),
        ([0.3], [0.3]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_closed_form_cases(p: list[float], adjusted: list[float]) -> None:
    np.testing.assert_allclose(holm(np.array(p)), adjusted, atol=1e-15)


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_rejects_what_the_step_down_procedure_rejects(p: list[float], level: float) -> None:
    """Holm 1979 as written: go through the p values from the least, stop at the first above level / (tests left)."""
    order, rejected = np.argsort(p, kind="stable"), np.zeros(len(p), dtype=bool)
    for left, i in zip(range(len(p), 0, -1), order, strict=True):
        if p[i] * left > level:
            break
        rejected[i] = True
    np.testing.assert_array_equal(holm(np.array(p)) <= level, rejected)


def test_one_false_alarm_among_many_is_as_rare_as_one_alone() -> None:
    p = np.random.default_rng(0).random((2000, 14))
    assert np.mean([(holm(row) < 0.05).any() for row in p]) == pytest.approx(0.05, abs=0.015)
    assert (p < 0.05).any(1).mean() > 0.45


def test_p_of_draws_by_hand() -> None:
    assert two_sided(np.array([-1.0, 1, 2, 3, 4, 5, 6, 7, 8])) == pytest.approx(2 * 2 / 10)
    assert two_sided(-np.ones(99)) == pytest.approx(2 / 100)
    assert two_sided(np.zeros(99)) == 1
    assert np.isnan(two_sided(np.array([])))


@given(st.integers(0, 2**32 - 1))
def test_p_says_what_the_interval_says(seed: int) -> None:
    """Draws whose 95 % interval ends near 0: p is on the same side of 0.05, within one draw."""
    draws = np.random.default_rng(seed).normal(1.96, 1, size=1999)
    low = np.quantile(draws, 0.025)
    p = two_sided(draws)
    assert p < 0.052 if low > 0 else p > 0.048
