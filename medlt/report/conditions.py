"""What the verdict rests on besides its interval, as the report shows it."""

from __future__ import annotations

from typing import Any

from medlt.report.collect import Collected


def conditions(run: Collected) -> dict[str, Any] | None:
    """Return the conditions of the verdict, for the template conditions.html.j2; None if verdict.json has none."""
    record = run.verdict or {}
    if "above_chance" not in record:
        return None
    return {
        "length": record.get("training_length"),
        "above_chance": record["above_chance"],
        "problems": record.get("cannot_see", []),
    }
