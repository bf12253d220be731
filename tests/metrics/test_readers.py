"""Kappa against a calculation by hand, exact intervals against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medlt.metrics.readers import exact_interval, exact_share, kappa


def test_kappa_by_hand() -> None:
    """Of 50 images both say yes to 20 and no to 15, only the first yes to 5, only the second to 10 (p_o 0.7, p_e 0.5).

    p_e = (25 / 50) (30 / 50) + (25 / 50) (20 / 50) = 0.5; kappa = (0.7 - 0.5) / (1 - 0.5) = 0.4.
    """
    first = ["yes"] * 20 + ["no"] * 15 + ["yes"] * 5 + ["no"] * 10
    second = ["yes"] * 20 + ["no"] * 15 + ["no"] * 5 + ["yes"] * 10
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(first, first) == 1
    assert math.isnan(kappa(["yes"] * 3, ["yes"] * 3))


@pytest.mark.parametrize("n", [1, 5, 40])
def test_an_interval_of_none_and_of_all_has_a_closed_form(n: int) -> None:
    """P(0 of n) = (1 - p)^n = 0.025 at the upper end, and the mirror image for n of n."""
    end = 1 - 0.025 ** (1 / n)
    assert exact_interval(0, n) == (0, pytest.approx(end))
    assert exact_interval(n, n) == (pytest.approx(1 - end), 1)


@given(st.integers(1, 60), st.data())
def test_an_interval_is_that_of_the_binomial_test(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = exact_interval(k, n)
    ends = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert (low, high) == (pytest.approx(ends.low, abs=1e-9), pytest.approx(ends.high, abs=1e-9))


def test_two_readings_of_an_image_are_one_image_for_the_interval() -> None:
    once = exact_share([True, False, True], ["a", "b", "c"])
    twice = exact_share([True, False, True] * 2, ["a", "b", "c"] * 2)
    assert (twice.count, twice.of) == (4, 6)
    assert (twice.value, twice.low, twice.high) == (once.value, once.low, once.high)
    nothing = exact_share([], [])
    assert nothing.of == 0
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
