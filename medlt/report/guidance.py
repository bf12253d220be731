"""The report's section on the strength of guidance: what each guide does to the same rows, strength by strength.

It shows RUN/calibration.parquet (`medlt.recipes.calibrate`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from medlt.report.curves import Axis, Chart, DataPoint, Series, chart, fit_axis

if TYPE_CHECKING:
    import pandas as pd

EXPECTED = 0.05
"""Share of real validation images that is beyond the 95 % quantile, by definition."""


def section(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Return one entry for each guide: kind, lines (rows of the table, unguided first), and two charts or None.

    The charts show the share of images beyond real ones and the verifier's probability by the displacement.
    """
    if table is None:
        return []
    return [_guide(part.sort_values("strength")) for _, part in table.groupby("guide", sort=True)]


def _guide(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the entry of one guide."""
    lines = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    charts = [_chart(rows, "outside"), _chart(rows, "verifier")] if len(rows) > 2 else [None, None]
    return {"kind": str(rows["kind"].iloc[0]), "lines": lines, "outside": charts[0], "verifier": charts[1]}


def _chart(rows: pd.DataFrame, name: str) -> Chart | None:
    """Return a chart of a column by the displacement, with the unguided value as a line; None without values."""
    known = rows[rows[name].notna()]
    if len(known) < 2:
        return None
    far = float(known["displacement"].max()) or 1.0
    plain = float(known[name].iloc[0]) if name == "verifier" else EXPECTED
    points = [_point(row, name) for row in known.to_dict("records")]
    level = [DataPoint(0.0, plain), DataPoint(far, plain)]
    series = [
        Series("unguided" if name == "verifier" else "real", "reference", level, marked=False),
        Series("guided", "synthetic", points),
    ]
    ends = [value for point in [*points, *level] for value in (point.y, point.low, point.high) if math.isfinite(value)]
    return chart(series, Axis(0.0, far), fit_axis(ends, zero=name == "outside"))


def _point(row: dict[Any, Any], name: str) -> DataPoint:
    """Return a point, with two standard errors of the change of the verifier's probability."""
    half = 2 * float(row["verifier_se"]) if name == "verifier" else math.nan
    value = float(row[name])
    return DataPoint(float(row["displacement"]), value, value - half, value + half)
