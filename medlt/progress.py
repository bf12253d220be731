"""Progress of long work: a name, how much is done, how much there is. A plain callable below the command line."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Progress:
    """Call it as progress(stage, done, total). Draws rich bars on stderr when `enabled`, else does nothing."""

    def __init__(self, enabled: bool = False) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            Task,
            TaskID,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars
        from rich.text import Text

        class Rate(ProgressColumn):
            """Units a second."""

            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:,.0f}/s" if task.speed else "")

        name = TextColumn("{task.description:<28}")
        columns = (name, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=Console(stderr=True), disable=not enabled)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of `stage` are finished."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)
