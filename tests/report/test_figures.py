"""The geometry of the figures is linear in the data; sparklines and ticks behave at the edges."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.report.figures import LABEL, PLOT, Interval, bars, forest, limits, spark, ticks

finite = st.floats(-1, 1, allow_nan=False).map(lambda v: round(v, 4))


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=8))
def test_forest_is_one_linear_scale_that_holds_zero_and_every_interval(values: list[tuple[float, ...]]) -> None:
    rows = [Interval(f"f{i}", sorted(v)[1], min(v), max(v), "no evidence", i < 2) for i, v in enumerate(values)]
    low, high = limits(rows)
    plot = forest(rows, (low, high))
    for mark in plot.marks:
        for x, value in ((mark.left, mark.row.low), (mark.x, mark.row.value), (mark.right, mark.row.high)):
            assert LABEL <= x <= LABEL + PLOT
            assert x - plot.zero == pytest.approx(PLOT * value / (high - low), abs=1e-6)
    for x, value in plot.ticks:
        assert x - plot.zero == pytest.approx(PLOT * value / (high - low), abs=1e-6)
    heights = [mark.y for mark in plot.marks]
    assert heights == sorted(set(heights))
    assert heights[-1] < plot.base


def test_an_unknown_difference_takes_a_row_but_no_place() -> None:
    nan = math.nan
    rows = [Interval("a", 0.1, 0.0, 0.2, "no evidence"), Interval("b", nan, nan, nan, "no evidence")]
    plot = forest(rows, limits(rows))
    assert math.isnan(plot.marks[1].x)
    assert math.isfinite(plot.zero)
    assert limits(rows[1:]) == (-0.01, 0.01)


@given(finite, st.floats(1e-3, 2))
def test_ticks_are_round_inside_and_few(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 <= t <= low + width + 1e-9 for t in found)
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6


def test_bars_stack_on_one_scale_from_zero() -> None:
    rows = bars(["a", "b", "c"], [80, 10, 0], [0, 30, 0]).rows
    assert rows[0].real_width == pytest.approx(8 * rows[1].real_width)
    assert rows[1].added_width == pytest.approx(3 * rows[1].real_width)
    assert (rows[2].real_width, rows[2].added_width) == (0, 0)
    assert bars(["a"], [0], [0]).rows[0].real_width == 0


def test_spark_puts_the_largest_highest_and_skips_the_unknown() -> None:
    drawn = spark([math.nan, 1.0, 3.0, 2.0])
    assert drawn is not None
    heights = [float(point.split(",")[1]) for point in drawn.points.split()]
    assert len(heights) == 3
    assert heights[1] < heights[2] < heights[0]  # SVG's y runs down


def test_spark_needs_two_values_and_draws_a_constant_flat() -> None:
    assert spark([1.0]) is None
    assert spark([math.nan, 1.0]) is None
    flat = spark([0.5, 0.5, 0.5])
    assert flat is not None
    assert len({point.split(",")[1] for point in flat.points.split()}) == 1
