"""The report as one table for the terminal.

Names, numbers and intervals are never cut and never broken over two lines. A table that is wider than the terminal is
drawn without borders, then without its optional columns; in a very narrow terminal each row takes a few lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medlt.report import benchmark, summary
from medlt.report.arms import Experiment, rows
from medlt.report.collect import Collected, collect
from medlt.report.formatting import NONE, interval, number, spread

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

STYLES = {"helps": "bold green", "harms": "bold red", "cannot see": "yellow"}
GAP = 2
"""Columns between cells without borders, and before the lines of a stacked row."""
WHOLE = re.compile(r"[^\s\[]*\[[^\]]*\]\S*|\S+ ± \S+|\S+")
"""Parts of a text that stay on one line: an interval, a mean with its deviation, or a verdict."""


@dataclass(frozen=True)
class Column:
    """A column of a table. An optional one is left out where the terminal is too narrow."""

    name: str
    right: bool = True
    optional: bool = False


@dataclass(frozen=True)
class ResultTable:
    """A table that fits its terminal, a title above it and a sentence below. The first column names the row.

    further: tables that follow it.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    further: tuple[ResultTable, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield title, table and caption for the width of this console."""
        from rich.text import Text

        width = options.max_width
        yield Text(self.title, style="italic")
        yield from self._body(width)
        for line in wrapped(WHOLE.findall(self.caption), width):
            yield Text(line, style="dim italic")
        for table in self.further:
            yield from table.__rich_console__(console, options)

    def _body(self, width: int) -> Iterator[RenderableType]:
        from rich.text import Text

        every, needed = range(len(self.columns)), [i for i, one in enumerate(self.columns) if not one.optional]
        for chosen, bordered in ((every, True), (every, False), (needed, False)):
            if self._width(chosen, bordered) <= width:
                yield self._table(chosen, bordered)
                break
        else:
            heading = tuple(column.name for column in self.columns)
            yield from (Text(line, style="bold") for line in self._stacked(heading, needed, width))
            for row in self.rows:
                yield from (Text(line) for line in self._stacked(row, needed, width))
        if len(chosen) < len(self.columns):
            left_out = ", ".join(one.name for one in self.columns if one.optional)
            for line in wrapped(f"In report.html, or in a wider terminal: {left_out}.".split(), width):
                yield Text(line, style="dim")

    def _widths(self, chosen: Iterable[int]) -> list[int]:
        """Return the narrowest columns in which no cell and no word of a heading is broken."""
        from rich.cells import cell_len

        texts = {i: (*self.columns[i].name.split(), *(row[i] for row in self.rows)) for i in chosen}
        return [max(map(cell_len, column)) for column in texts.values()]

    def _width(self, chosen: Sequence[int], bordered: bool) -> int:
        between = 3 * len(chosen) + 1 if bordered else GAP * (len(chosen) - 1)
        return sum(self._widths(chosen)) + between

    def _table(self, chosen: Sequence[int], bordered: bool) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        built = Table(box=box.HEAVY_HEAD if bordered else None, padding=(0, 1) if bordered else (0, GAP, 0, 0))
        built.pad_edge = bordered
        for i, width in zip(chosen, self._widths(chosen), strict=True):
            column = self.columns[i]
            built.add_column(Text(column.name), justify="right" if column.right else "left", width=width)
        for row in self.rows:
            built.add_row(*(Text(row[i], style=STYLES.get(row[i], "")) for i in chosen))
        return built

    def _stacked(self, row: tuple[str, ...], chosen: Sequence[int], width: int) -> Iterator[str]:
        """Yield the name of a row, then its other cells on lines of their own."""
        yield row[chosen[0]]
        for line in wrapped((row[i] for i in chosen[1:] if row[i]), width - GAP, " " * GAP):
            yield " " * GAP + line


def wrapped(parts: Iterable[str], width: int, between: str = " ") -> Iterator[str]:
    """Yield lines of at most `width` characters that break only between parts."""
    from rich.cells import cell_len

    line = ""
    for part in parts:
        longer = f"{line}{between}{part}" if line else part
        if line and cell_len(longer) > width:
            yield line
            longer = part
        line = longer
    if line:
        yield line


def report_table(run: Path) -> ResultTable:
    """Return findings with label counts, AP of each arm and the deciding difference; of an experiment, its arms.

    The figures of benchmarks follow, where there are any.

    Raises InputError like `collect`.
    """
    collected = collect(Path(run))
    columns, cells = _compared(Experiment.of(collected)) if collected.is_experiment else _findings(collected)
    verdict = collected.verdict or {}
    title = f"verdict: {verdict['verdict']}" if verdict else "no verdict yet"
    caption = str(verdict.get("sentence", "not run yet: the evaluation"))
    return ResultTable(title, caption, columns, tuple(cells), _benchmark(collected))


def _benchmark(run: Collected) -> tuple[ResultTable, ...]:
    """Return the published figures over all findings of the last test set: the balanced one, where there is one."""
    section = benchmark.section(run.benchmark, run.verdict)
    if section is None:
        return ()
    part = section["sets"][-1]
    columns = (Column("arm", right=False), *(Column(f"{name} [interval]") for name in part["metrics"]))
    title = f"as benchmarks publish it: {part['name']}, {part['images']} images"
    return (ResultTable(title, "", columns, tuple(benchmark.lines(part))),)


def _findings(run: Collected) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
    """Return columns and rows of a run: one row per group and finding."""
    arms = [] if run.scores is None else summary.in_order(run, run.scores["arm"])
    columns = (
        Column("finding", right=False),
        Column("before"),
        Column("after"),
        *(Column(f"AP {arm}", optional=True) for arm in arms),
        Column("difference [interval]"),
        Column("verdict", right=False),
    )
    scored = [] if run.scores is None else list(run.scores["finding"])
    scores, differences = summary.scores(run).to_dict("index"), _differences(run)
    cells: list[tuple[str, ...]] = []
    for name in summary.names(run, [*summary.counts(run).index, *scored]):
        ap = (spread(scores.get((name, "AP", arm))) for arm in arms)
        cells.append((name, *_counts(run, name), *ap, *differences.get(name, (NONE, NONE))))
    return columns, cells


def _compared(experiment: Experiment) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
    """Return columns and rows of an experiment: one row per arm, the primary one marked."""
    columns = (
        Column("arm", right=False),
        Column("added", optional=True),
        Column("validation tail AP", optional=True),
        Column(f"test tail {experiment.metric}"),
        Column("difference to its control [interval]"),
        Column("verdict", right=False),
    )
    cells: list[tuple[str, ...]] = []
    for row in rows(experiment):
        name = f"{row['name']} (primary)" if row["primary"] else row["name"]
        scores = (spread(row["val"]), spread(row["test"]["tail"]), interval(row["to_control"]))
        cells.append((name, number(row["added"], 0), *scores, row["verdict"] or NONE))
    return columns, cells


def _counts(run: Collected, name: str) -> tuple[str, str]:
    """Return positive train labels before and after; blanks for a group."""
    counts = summary.counts(run)
    if name not in counts.index:
        return "", ""
    return str(counts["real"][name]), str(counts["real"][name] + counts["added"][name])


def _differences(run: Collected) -> dict[str, tuple[str, str]]:
    """Return finding -> (difference with interval, verdict) of the deciding comparison, in its metric."""
    pair = summary.deciding_pair(run)
    if pair is None or run.comparisons is None:
        return {}
    table = summary.comparison(run, pair, str((run.verdict or {}).get("metric") or "AP"))
    return {str(name): (interval(row), str(row["verdict"])) for name, row in table.to_dict("index").items()}
