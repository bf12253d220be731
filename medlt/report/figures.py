"""Geometry of the report's figures, in px. The macros of figures.html.j2 draw the SVG; there is no plot library.

Colours are CSS variables there, so one drawing serves light, dark and print.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from medlt.report.panels import GAP, png
from medlt.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

ROW, LABEL, PLOT, TEXT = 22.0, 128.0, 250.0, 170.0
BARS, COUNT = 420.0, 96.0
SPARK_WIDTH, SPARK_HEIGHT = 88.0, 22.0
GAP_PARTS, LETTER = 10.0, 6.4


@dataclass(frozen=True)
class Interval:
    """A difference with its interval. Rows of one `part` stand together; a `bold` row is drawn as a diamond."""

    name: str
    value: float
    low: float
    high: float
    verdict: str
    bold: bool = False
    part: str = ""


@dataclass(frozen=True)
class Mark:
    """One drawn row: its data and its position."""

    row: Interval
    y: float
    x: float
    left: float
    right: float


@dataclass(frozen=True)
class Forest:
    """A forest plot; `ticks` are (x, value), `rules` the y of lines between parts, `headings` (y, name of a part)."""

    width: float
    height: float
    base: float
    zero: float
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, float], ...]
    rules: tuple[float, ...]
    headings: tuple[tuple[float, str], ...]
    letters: int


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values inside [low, high] in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def limits(rows: Sequence[Interval]) -> tuple[float, float]:
    """Return a scale that holds zero and every interval, with a margin."""
    ends = [end for row in rows for end in (row.low, row.high, row.value) if math.isfinite(end)] + [0.0]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def forest(
    rows: Sequence[Interval], scale: tuple[float, float], label: float = LABEL, *, headed: bool = False
) -> Forest:
    """Return a forest plot of `rows`, top to bottom, on `scale`. A row without a finite difference has x = NaN.

    A line separates parts; with `headed`, the name of a part stands above its rows. Names get `label` px.
    """
    low, high = scale

    def x(value: float) -> float:
        return label + PLOT * (value - low) / (high - low)

    marks: list[Mark] = []
    rules: list[float] = []
    headings: list[tuple[float, str]] = []
    y = 0.0
    for part, members in groupby(rows, key=lambda row: row.part):
        if marks:
            rules.append(y + GAP_PARTS / 2)
            y += GAP_PARTS
        if headed:
            headings.append((y + ROW / 2, part))
            y += ROW
        for row in members:
            marks.append(Mark(row, y + ROW / 2, x(row.value), x(row.low), x(row.high)))
            y += ROW
    lines = tuple((x(t), t) for t in ticks(low, high))
    letters = int(label / LETTER)
    return Forest(
        label + PLOT + TEXT, y + 26, y + 4, x(0.0), tuple(marks), lines, tuple(rules), tuple(headings), letters
    )


@dataclass(frozen=True)
class Bar:
    """Train positives of one finding: real ones and added ones; widths in px."""

    name: str
    y: float
    real: int
    added: int
    real_width: float
    added_width: float


@dataclass(frozen=True)
class BarChart:
    """A horizontal bar chart."""

    width: float
    height: float
    left: float
    rows: tuple[Bar, ...]


def bars(names: Sequence[str], real: Sequence[int], added: Sequence[int]) -> BarChart:
    """Return stacked bars from zero on one linear scale."""
    most = max([a + b for a, b in zip(real, added, strict=True)] + [1])
    rows = tuple(
        Bar(name, ROW * (i + 0.5), int(r), int(a), BARS * r / most, BARS * a / most)
        for i, (name, r, a) in enumerate(zip(names, real, added, strict=True))
    )
    return BarChart(LABEL + BARS + COUNT, ROW * len(rows) + 4, LABEL, rows)


@dataclass(frozen=True)
class Spark:
    """A sparkline: its points as SVG text, and its last point."""

    points: str
    x: float
    y: float
    width: float = SPARK_WIDTH
    height: float = SPARK_HEIGHT


def spark(values: Sequence[float]) -> Spark | None:
    """Return a sparkline over the finite values, each at its own x; None if there are fewer than two."""
    known = [(i, v) for i, v in enumerate(values) if math.isfinite(v)]
    if len(known) < 2:
        return None
    low, high = min(v for _, v in known), max(v for _, v in known)
    places = [
        (4 + (SPARK_WIDTH - 8) * i / (len(values) - 1), SPARK_HEIGHT / 2 if high == low else _height(v, low, high))
        for i, v in known
    ]
    return Spark(" ".join(f"{x:.1f},{y:.1f}" for x, y in places), *places[-1])


def _height(value: float, low: float, high: float) -> float:
    return SPARK_HEIGHT - 4 - (SPARK_HEIGHT - 8) * (value - low) / (high - low)


def opened(file: Path) -> Image:
    """Return a picture of the run folder as RGB. Raises InputError if it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError):
        raise InputError(f"{file}: is not a readable PNG; run again, which writes it") from None


def data_uri(content: bytes) -> str:
    """Return the bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def thumbnail(file: Path, last: int | None = None, height: int = 128) -> str:
    """Return a strip as a PNG data URI, shrunk to `height` px; `last` keeps only that many of its last tiles."""
    from PIL import Image

    image = opened(file)
    if last is not None:
        image = image.crop((image.width - last * (image.height + GAP) + GAP, 0, image.width, image.height))
    if image.height > height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    return data_uri(png(image))
