"""The report in one table for the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from medlt.report import summary
from medlt.report.arms import Experiment, rows
from medlt.report.collect import Collected, collect
from medlt.report.formatting import NONE, interval, number, signed, spread

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"helps": "bold green", "harms": "bold red"}


def report_table(run: Path) -> Table:
    """Findings against label counts, AP of each arm, and the deciding difference; of an experiment, its arms.

    Raises InputError like `collect`.
    """
    from rich.text import Text

    told = collect(Path(run))
    built = _empty(told)
    if told.is_experiment:
        return _compared(built, Experiment.of(told))
    arms = _arms(told)
    built.add_column("finding")
    for name in ("positives", "after", *(f"AP {arm}" for arm in arms), "difference [interval]", "word"):
        built.add_column(name, justify="left" if name == "word" else "right")
    differences = _differences(told)
    for name in _names(told):
        value, word = differences.get(name, (NONE, NONE))
        cells = [name, *_counts(told, name), *(_score(told, name, arm) for arm in arms), value]
        built.add_row(*map(Text, cells), Text(word, style=STYLES.get(word, "")))
    return built


def _empty(run: Collected) -> Table:
    """A table without columns: the verdict above, its sentence below."""
    from rich.table import Table
    from rich.text import Text

    caption = (run.verdict or {}).get("sentence", "not run yet: the evaluation")
    return Table(title=Text(_title(run)), caption=Text(str(caption)))


def _compared(built: Table, experiment: Experiment) -> Table:
    """One row an arm of an experiment; the chosen one is marked."""
    from rich.text import Text

    built.add_column("arm")
    for name in ("added", "validation tail AP", "test tail AP", "difference to its control [interval]", "word"):
        built.add_column(name, justify="left" if name == "word" else "right")
    for row in rows(experiment):
        name = f"{row['name']} (primary)" if row["primary"] else row["name"]
        scores = (spread(row["val"]), spread(row["ap"]["tail"]), interval(row["to_control"]))
        cells = (name, number(row["added"], 0), *scores)
        built.add_row(*map(Text, cells), Text(row["word"] or NONE, style=STYLES.get(row["word"], "")))
    return built


def _title(run: Collected) -> str:
    return f"verdict: {run.verdict['verdict']}" if run.verdict else "no verdict yet"


def _arms(run: Collected) -> list[str]:
    return [] if run.scores is None else summary.in_order(run, run.scores["arm"])


def _names(run: Collected) -> list[str]:
    scored = [] if run.scores is None else list(run.scores["finding"])
    return summary.names(run, [*summary.counts(run).index, *scored])


def _counts(run: Collected, name: str) -> tuple[str, str]:
    counts = summary.counts(run)
    if name not in counts.index:
        return "", ""
    return str(counts["real"][name]), str(counts["real"][name] + counts["added"][name])


def _score(run: Collected, name: str, arm: str) -> str:
    scores = summary.scores(run)
    key = (name, "AP", arm)
    if key not in scores.index:
        return NONE
    mean, sd = scores["mean"][key], scores["std"][key]
    return number(mean) if math.isnan(sd) else f"{number(mean)} ± {number(sd)}"


def _differences(run: Collected) -> dict[str, tuple[str, str]]:
    """Finding -> (difference and interval, word) of the deciding comparison, in AP."""
    pair = summary.deciding_pair(run)
    if pair is None or run.comparisons is None:
        return {}
    table = summary.comparison(run, pair, "AP")
    return {
        str(name): (f"{signed(r.difference)} [{signed(r.low)}, {signed(r.high)}]", str(r.word))
        for name, r in zip(table.index, table.itertuples(), strict=True)
    }
