"""The tables of an experiment as Markdown, for the documentation: numbers to three digits, read from the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medlt.report.arms import Experiment, rows
from medlt.report.collect import collect
from medlt.report.formatting import NONE, interval, number, spread


def arms_table(folder: Path) -> str:
    """Return one row per arm: rows added, tail metric, differences to control and real arm. Raises InputError."""
    experiment = Experiment.of(collect(Path(folder)))
    head = (
        "arm",
        "added",
        f"tail {experiment.metric}, mean ± sd",
        "control",
        "difference",
        "verdict",
        f"difference to {experiment.real}",
    )
    body = [
        (
            f"**{_text(row['name'])}**" if row["primary"] else _text(row["name"]),
            number(row["added"], 0),
            spread(row["test"]["tail"]),
            _text(row["control"]) or NONE,
            interval(row["to_control"]),
            row["verdict"] or NONE,
            interval(row["to_real"]),
        )
        for row in rows(experiment)
    ]
    return _table(head, body, "l r r l r l r")


def _text(name: str) -> str:
    """Return a name with the characters of Markdown and HTML escaped."""
    plain = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\|*_`[]" else c for c in plain)


def _table(head: Sequence[str], body: Sequence[Sequence[str]], sides: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in sides.split()]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, rule, *body))
