"""Are the synthetic images labelled right? Results of the evaluation classifiers for each source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medlt.report.collect import Collected
from medlt.report.curves import Axis, Chart, DataPoint, Series, chart

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


def sources(run: Collected) -> list[dict[str, Any]]:
    """Return one mapping per source, in the order of the tables; a part without a table is None or empty."""
    tables = [t for t in (run.agreement, run.confusion, run.filter_effect, run.rejections) if t is not None]
    names = dict.fromkeys(str(name) for table in tables for name in table["source"])
    return [
        {
            "name": name,
            "agreement": _agreement(_of(run.agreement, name)),
            "confusion": _confusion(_of(run.confusion, name)),
            "filter_effect": _filter_effect(_of(run.filter_effect, name)),
            "rejections": _records(_of(run.rejections, name)),
        }
        for name in names
    ]


def _of(table: pd.DataFrame | None, source: str) -> pd.DataFrame | None:
    if table is None or not (rows := table[table["source"].astype(str) == source]).size:
        return None
    return rows


def _records(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _agreement(table: pd.DataFrame | None) -> Chart | None:
    """Return the share accepted by quantile of the limit: synthetic images, and real ones as the reference."""
    pooled = [] if table is None else _records(table[table["finding"] == ALL])
    real = [DataPoint(row["quantile"], row["real"]) for row in pooled]
    made = [DataPoint(row["quantile"], row["synthetic"], row["low"], row["high"]) for row in pooled]
    lines = [Series("held-out real positives", "reference", real), Series("synthetic", "synthetic", made)]
    drawn = chart(lines, Axis(0.0, 1.0), Axis(0.0, 1.0))
    return drawn if drawn.lines else None


def _filter_effect(table: pd.DataFrame | None) -> dict[str, list[dict[str, Any]]] | None:
    """Return the rows of all findings pooled, and the rows of each finding."""
    if table is None:
        return None
    pooled = table["finding"] == ALL
    return {"all": _records(table[pooled]), "each": _records(table[~pooled])}


def _confusion(table: pd.DataFrame | None) -> dict[str, Any] | None:
    """Return target labels by predicted labels: names, and shares for synthetic and real images, NaN if unknown."""
    if table is None:
        return None
    columns = list(dict.fromkeys(str(name) for name in table["predicted"]))
    named = list(dict.fromkeys(str(name) for name in table["label"]))
    heat = {}
    for name, column in (("synthetic", "share"), ("real", "real_share")):
        share = {(str(r["label"]), str(r["predicted"])): float(r[column]) for r in table.to_dict("records")}
        heat[name] = [[share.get((row, column), float("nan")) for column in columns] for row in named]
    images = {str(r["label"]): r["images"] for r in table.to_dict("records")}
    return {"labels": named, "predicted": columns, "images": [images[name] for name in named], "heat": heat}
