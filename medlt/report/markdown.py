"""The tables of an experiment as Markdown, for the documentation: numbers to three digits, read from the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medlt.report.arms import Experiment, rows
from medlt.report.collect import collect
from medlt.report.formatting import NONE, interval, number, p_value, spread
from medlt.report.verdict import per_finding


def arms_table(folder: Path) -> str:
    """Return one row per arm: added rows, tail AP, difference to its control and to the real arm. Raises InputError."""
    experiment = Experiment.of(collect(Path(folder)))
    head = (
        "arm",
        "added",
        "tail AP, mean ± sd",
        "control",
        "difference",
        "word",
        f"difference to {experiment.real}",
    )
    body = [
        (
            f"**{_text(row['name'])}**" if row["primary"] else _text(row["name"]),
            number(row["added"], 0),
            spread(row["ap"]["tail"]),
            _text(row["control"]) or NONE,
            interval(row["to_control"]),
            row["word"] or NONE,
            interval(row["to_real"]),
        )
        for row in rows(experiment)
    ]
    return _table(head, body, "l r r l r l r")


def findings_table(folder: Path) -> str:
    """Return one row per group and finding: AP of the primary arm and of its control, difference, p, Holm p, word."""
    table = per_finding(Experiment.of(collect(Path(folder))))
    if table is None:
        return ""
    head = ("finding", f"AP {table['control']}", f"AP {table['arm']}", "difference", "p", "Holm p", "word")
    body = []
    for row in table["rows"]:
        test = row["test"] or {}
        values = (interval(row["test"]), p_value(test.get("p")), p_value(test.get("p_holm")))
        word = test.get("reason") or test.get("word") or NONE
        body.append(
            (_text(row["name"].replace("_", " ")), *map(spread, row["scores"]["AP"]), *values, _text(str(word)))
        )
    return _table(tuple(map(_text, head)), body, "l r r r r r l")


def _text(name: str) -> str:
    """Return a name with the characters of Markdown and HTML escaped."""
    plain = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "|*_`[]" else c for c in plain)


def _table(head: Sequence[str], body: Sequence[Sequence[str]], sides: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in sides.split()]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, rule, *body))
