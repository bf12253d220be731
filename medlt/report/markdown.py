"""An experiment's tables as Markdown, for the documentation: numbers to three digits, straight from the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medlt.report.arms import Experiment, rows
from medlt.report.collect import collect
from medlt.report.formatting import NONE, interval, number, p_value, spread
from medlt.report.verdict import per_finding


def arms_table(folder: Path) -> str:
    """One row an arm: added rows, tail AP, difference to its control and to the real arm. Raises InputError."""
    experiment = Experiment.of(collect(Path(folder)))
    head = (
        "arm",
        "added",
        "tail AP, mean ± sd",
        "held against",
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
    """One row a group and finding: AP of the chosen arm and of its control, difference, p and Holm p, word."""
    told = per_finding(Experiment.of(collect(Path(folder))))
    if told is None:
        return ""
    head = ("finding", f"AP {told['control']}", f"AP {told['arm']}", "difference", "p", "Holm p", "word")
    body = []
    for row in told["rows"]:
        test = row["test"] or {}
        values = (interval(row["test"]), p_value(test.get("p")), p_value(test.get("p_holm")))
        word = test.get("reason") or test.get("word") or NONE
        body.append(
            (_text(row["name"].replace("_", " ")), *map(spread, row["scores"]["AP"]), *values, _text(str(word)))
        )
    return _table(tuple(map(_text, head)), body, "l r r r r r l")


def _text(name: str) -> str:
    """A name that neither breaks the table nor becomes markup."""
    plain = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "|*_`[]" else c for c in plain)


def _table(head: Sequence[str], body: Sequence[Sequence[str]], sides: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in sides.split()]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, rule, *body))
