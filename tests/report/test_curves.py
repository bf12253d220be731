"""Charts are one scale an axis: inside the frame, monotone, equal steps for equal steps (or ratios)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, DataPoint, Series, chart, fit_axis

finite = st.floats(-1, 1, allow_nan=False).map(lambda v: round(v, 4))
ratios = st.lists(st.floats(0.25, 4), min_size=2, max_size=6, unique=True)


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=8), st.floats(0, 10))
def test_every_point_and_whisker_lies_inside_the_frame(values: list[tuple[float, ...]], dodge: float) -> None:
    known = [DataPoint(float(i), *sorted(v)[1:2], min(v), max(v)) for i, v in enumerate(values)]
    ends = [end for p in known for end in (p.low, p.high)]
    drawn = chart([Series("a", "real", known), Series("b", "control", known)], fit_axis([0, 8]), fit_axis(ends), dodge)
    for line in drawn.lines:
        for place in line.places:
            assert LEFT <= place.x <= WIDTH - RIGHT
            assert TOP <= place.high <= place.y <= place.low <= HEIGHT - BOTTOM
    for y, _ in drawn.y_ticks:
        assert TOP <= y <= HEIGHT - BOTTOM


@given(ratios)
def test_equal_ratios_are_equal_steps_on_the_axis_of_ratios(values: list[float]) -> None:
    axis = Axis(0.25, 4.0, log=True)
    places = chart([Series("a", "real", [DataPoint(v, 0.5) for v in values])], axis, Axis(0, 1)).lines[0].places
    assert [place.known.x for place in places] == sorted(values)
    widths = [(p.x - places[0].x, math.log(p.known.x / places[0].known.x)) for p in places[1:]]
    for width, ratio in widths:
        assert width == pytest.approx(widths[-1][0] * ratio / widths[-1][1], abs=1e-6)
    assert axis.ticks() == [0.25, 0.5, 1, 2, 4]


@given(st.lists(finite, min_size=2, max_size=8, unique=True))
def test_larger_is_higher(values: list[float]) -> None:
    points = [DataPoint(float(i), v) for i, v in enumerate(values)]
    places = chart([Series("a", "real", points)], fit_axis([0, 8]), fit_axis(values)).lines[0].places
    by_value = sorted(places, key=lambda place: place.known.y)
    assert [p.y for p in by_value] == sorted((p.y for p in places), reverse=True)


def test_what_is_unknown_is_not_drawn() -> None:
    nan = math.nan
    given_ = [DataPoint(0.0, nan), DataPoint(nan, 0.5), DataPoint(1.0, 0.5)]
    drawn = chart([Series("a", "real", given_), Series("b", "real", [DataPoint(nan, nan)])], Axis(0, 1), Axis(0, 1))
    assert [line.name for line in drawn.lines] == ["a"]
    assert [(p.known.x, math.isnan(p.low)) for p in drawn.lines[0].places] == [(1.0, True)]
    assert drawn.lines[0].path.count(",") == 1


def test_an_axis_holds_what_it_is_given_and_zero() -> None:
    assert fit_axis([0.2, math.nan, 0.5]) == Axis(0.2, 0.5)
    assert fit_axis([0.2, 0.5], zero=True) == Axis(0.0, 0.5)
    assert fit_axis([]) == Axis(0.0, 1.0)
    assert fit_axis([0.3]).low < 0.3 < fit_axis([0.3]).high
