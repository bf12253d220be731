"""The report's section on the figures that benchmarks publish: RUN/benchmark.parquet, one table a test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medlt.report.formatting import NONE, number, signed

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


def section(table: pd.DataFrame | None, verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the variables of the template, or None without a table.

    rule: how head, medium and tail are cut; sets: for each test set its name, images, metrics, groups, and rows: arm,
    control ("" for the arm's own figures) and cells, one text for each metric and group.
    """
    if table is None or table.empty:
        return None
    names = list(dict.fromkeys(table["test_set"].astype(str)))
    rule = ((verdict or {}).get("benchmark") or {}).get("rule", "")
    return {"rule": rule, "sets": [_one(name, table[table["test_set"] == name]) for name in names]}


def _one(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return one test set."""
    metrics, groups = (list(dict.fromkeys(table[column].astype(str))) for column in ("metric", "group"))
    pairs = list(dict.fromkeys(zip(table["arm"], table["control"], strict=True)))
    cells = {(r["arm"], r["control"], r["metric"], r["group"]): r for r in table.to_dict("records")}
    rows = [
        {
            "arm": arm,
            "control": control,
            "cells": [_cell(cells.get((arm, control, m, g))) for m in metrics for g in groups],
        }
        for arm, control in pairs
    ]
    return {"name": name, "images": int(table["images"].iloc[0]), "metrics": metrics, "groups": groups, "rows": rows}


def _cell(row: Mapping[str, Any] | None) -> str:
    """Return a figure, or a difference with its signs, with the interval."""
    form = signed if row is not None and row["control"] else number
    if row is None or form(row["value"]) == NONE:
        return NONE
    return f"{form(row['value'])} [{form(row['low'])}, {form(row['high'])}]"


def lines(part: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the figures over all findings of one test set as rows of text: arm, then one cell a metric."""
    chosen = [k for k, _ in enumerate(part["rows"][0]["cells"]) if part["groups"][k % len(part["groups"])] == ALL]
    return [
        (f"{row['arm']} − {row['control']}" if row["control"] else row["arm"], *(row["cells"][k] for k in chosen))
        for row in part["rows"]
    ]
