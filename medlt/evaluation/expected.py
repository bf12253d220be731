"""Whether a comparison came out as it must: the check of the experiment by arms whose effect is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def expected(entries: Sequence[Mapping[str, Any]], expect: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each arm of `expect`: arm, expected, verdict, met. An arm without an entry has no verdict.

    entries: those of `arms` in verdict.json.
    """
    verdicts = {str(one["arm"]): str(one["verdict"]) for one in entries}
    rows = [(arm, wanted, verdicts.get(arm, "no verdict")) for arm, wanted in expect.items()]
    return [{"arm": arm, "expected": wanted, "verdict": got, "met": got == wanted} for arm, wanted, got in rows]


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each arm that came out otherwise."""
    return [f"{row['arm']}: {row['verdict']}, where {row['expected']} was expected" for row in rows if not row["met"]]
