"""The report's section on where findings are: maps against masks and boxes, and what the images carry.

It shows RUN/localisation.parquet (`medlt.evaluation.localisation`), long by metric, as one line for each finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MEANS = ("macro", "overall")
"""Names that are no finding: the mean over findings, and all images together."""


def section(table: pd.DataFrame | None) -> dict[str, Any] | None:
    """Return the variables of the template, or None without a table.

    maps, images: one entry for each finding, stage and kind of rows: these names, images, patients, reason, `mean`
    (whether it is no finding), and metric -> {value, low, high}.
    """
    if table is None:
        return None
    lines = _lines(table)
    return {
        "maps": [line for line in lines if line["rows"] != "made"],
        "images": [line for line in lines if line["rows"] == "made"],
    }


def _lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one entry for each (rows, finding, stage), the means first, otherwise in the order of the table."""
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in table.to_dict("records"):
        key = (str(row["rows"]), str(row["finding"]), str(row["stage"]))
        names = dict(zip(("rows", "finding", "stage"), key, strict=True))
        first = {**names, "mean": key[1] in MEANS, **{name: row[name] for name in ("images", "patients", "reason")}}
        lines.setdefault(key, first)[str(row["metric"])] = {name: row[name] for name in ("value", "low", "high")}
    rows, findings = (list(dict.fromkeys(table[name].astype(str))) for name in ("rows", "finding"))
    order = [name for name in findings if name in MEANS] + [name for name in findings if name not in MEANS]
    return sorted(lines.values(), key=lambda line: (rows.index(line["rows"]), order.index(line["finding"])))
