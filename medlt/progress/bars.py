"""Progress as bars on a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from medlt.progress.callback import ProgressCallback, ending

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Bars(ProgressCallback):
    """Draw rich bars on stderr: one per count, a moving one for the stage that runs. `details` prints stages too."""

    def __init__(self, details: bool = False) -> None:
        self._details = details
        self._bars = _rich_bars()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `stage` are finished."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def begin(self, stage: str) -> None:
        """Draw a moving bar, and print the stage's name above the bars with `details`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=None)
        if self._details:
            self.note(f"{stage}: started")

    def end(self, stage: str, error: BaseException | None = None) -> None:
        """Print the stage's end above the bars: an error always, else with `details`."""
        task = self._tasks.get(stage)
        if task is not None and self._bars.tasks[self._bars.task_ids.index(task)].total is None:
            self._bars.remove_task(self._tasks.pop(stage))
        if self._details or error is not None:
            self.note(f"{stage}: {ending(error)}")

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)


def _rich_bars() -> RichProgress:
    """Return the bars: name, bar, count, rate, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    name = TextColumn("{task.description:<28}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return RichProgress(*columns, console=Console(stderr=True))
