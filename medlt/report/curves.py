"""Geometry of the report's line charts, in px. The macro `chart` of figures.html.j2 draws them; no plot library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medlt.report.figures import ticks

WIDTH, HEIGHT = 400.0, 276.0
LEFT, RIGHT, TOP, BOTTOM, PAD = 46.0, 10.0, 20.0, 38.0, 10.0


@dataclass(frozen=True)
class Axis:
    """The range of an axis, `low` < `high`; with `log` both are positive and the ticks are powers of two."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Return the position of `value`: 0 at `low`, 1 at `high`, NaN for NaN."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return a few round values inside."""
        if not self.log:
            return ticks(self.low, self.high)
        first, last = math.ceil(math.log2(self.low) - 1e-9), math.floor(math.log2(self.high) + 1e-9)
        return [2.0**power for power in range(first, last + 1)]


def fit_axis(values: Iterable[float], *, zero: bool = False) -> Axis:
    """Return the axis that holds the finite values, and zero if `zero`."""
    known = [value for value in values if math.isfinite(value)] + [0.0] * zero
    if not known:
        return Axis(0.0, 1.0)
    low, high = min(known), max(known)
    return Axis(low, high) if high > low else Axis(low - 0.01, high + 0.01)


@dataclass(frozen=True)
class DataPoint:
    """One point of the data with its interval; NaN for no interval."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Series:
    """A line of the data. `kind` is its CSS class; without `marked` it is a line only."""

    name: str
    kind: str
    points: Sequence[DataPoint]
    marked: bool = True


@dataclass(frozen=True)
class PlottedPoint:
    """The position of a point; `low` and `high` are the y of the ends of its whisker, NaN for no whisker."""

    x: float
    y: float
    low: float
    high: float
    known: DataPoint


@dataclass(frozen=True)
class Line:
    """A line as drawn: its points by x, and its path as SVG text."""

    name: str
    kind: str
    places: tuple[PlottedPoint, ...]
    path: str
    marked: bool


@dataclass(frozen=True)
class Chart:
    """A line chart; ticks are (px, value)."""

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, float], ...]
    y_ticks: tuple[tuple[float, float], ...]
    left: float = LEFT
    right: float = WIDTH - RIGHT
    base: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def _x(axis: Axis, value: float) -> float:
    return LEFT + PAD + (WIDTH - LEFT - RIGHT - 2 * PAD) * axis.share(value)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - PAD - (HEIGHT - TOP - BOTTOM - 2 * PAD) * axis.share(value)


def chart(series: Sequence[Series], across: Axis, up: Axis, dodge: float = 0.0) -> Chart:
    """Return `series` laid out on two axes, without points that are not finite and without lines that have no point.

    dodge: px between the points of neighbouring series at equal x, so that whiskers do not hide each other; at most
    `PAD` in all.
    """
    lines = []
    for i, one in enumerate(series):
        aside = dodge * (i - (len(series) - 1) / 2) if one.marked else 0.0
        known = sorted((p for p in one.points if math.isfinite(p.x) and math.isfinite(p.y)), key=lambda p: p.x)
        places = tuple(
            PlottedPoint(_x(across, p.x) + aside, _y(up, p.y), _y(up, p.low), _y(up, p.high), p) for p in known
        )
        if places:
            path = " ".join(f"{place.x:.1f},{place.y:.1f}" for place in places)
            lines.append(Line(one.name, one.kind, places, path, one.marked))
    x_ticks = tuple((_x(across, t), t) for t in across.ticks())
    return Chart(tuple(lines), x_ticks, tuple((_y(up, t), t) for t in up.ticks()))
