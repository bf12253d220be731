"""The output of a command: its result on stdout; progress, warnings and notes on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import IO, Any, Self

import typer

from medlt.cli.result import as_json_text
from medlt.progress import Bars, Lines, ProgressCallback, ticking


class Terminal(ProgressCallback):
    """The output of one command, and the progress callback for its long work.

    as_json: the result is one JSON object; volume: True shows details, False only warnings and the result. Inside the
    `with` block sys.stdout is stderr, so that only the result reaches stdout.
    """

    def __init__(self, as_json: bool = False, volume: bool | None = None) -> None:
        self.as_json, self.details, self.quiet = as_json, volume is True, volume is False
        self.printed = False
        self._out: IO[str] = sys.stdout
        self._open = ExitStack()
        self._progress: ProgressCallback | None = None
        self._work = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(redirect_stdout(sys.stderr))
        root, own = logging.getLogger(), logging.getLogger("medlt")
        handler, level = _Warnings(logging.INFO if self.details else logging.WARNING), own.level
        root.addHandler(handler)
        self._open.callback(root.removeHandler, handler)
        if self.details:
            own.setLevel(logging.INFO)
            self._open.callback(own.setLevel, level)
        return self

    def __exit__(self, *_: object) -> None:
        self._work.close()
        self._open.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of `stage` are finished."""
        self._display()(stage, done, total)

    def begin(self, stage: str) -> None:
        """Show that a stage of a recipe begins."""
        self._display().begin(stage)

    def end(self, stage: str, error: BaseException | None = None) -> None:
        """Show that the innermost stage of a recipe ends, and the error that ended it, if any."""
        self._display().end(stage, error)

    def note(self, text: str) -> None:
        """Show one line."""
        self._display().note(text)

    def show(self, value: dict[str, Any], table: Callable[[], object]) -> None:
        """Print the result: `value` as JSON, or the rich table that `table` builds."""
        self._finish_progress()
        if self.as_json:
            self.line(as_json_text(value))
            return
        from rich.console import Console

        Console(file=self._out).print(table())

    def show_lines(self, value: dict[str, Any], lines: Sequence[str]) -> None:
        """Print the result: `value` as JSON, or plain lines, which a pipe can take apart."""
        self._finish_progress()
        for line in [as_json_text(value)] if self.as_json else lines:
            self.line(line)

    def mention(self, text: str) -> None:
        """Print one line on stderr, unless --quiet is given."""
        if not self.quiet:
            typer.echo(text, err=True)

    def line(self, text: object) -> None:
        """Print one line of the result."""
        self.printed = True
        typer.echo(str(text), file=self._out)

    def _finish_progress(self) -> None:
        """Take the bars away, so that the result is printed below them."""
        self._work.close()
        self._progress = None

    def _display(self) -> ProgressCallback:
        """Return the progress callback: bars on a terminal, lines elsewhere, nothing with --quiet."""
        if self._progress is None:
            if self.quiet:
                self._progress = ProgressCallback()
            elif sys.stderr.isatty():
                self._progress = self._work.enter_context(Bars(self.details))
            else:
                self._progress = lines = Lines(lambda line: typer.echo(line, err=True))
                self._work.enter_context(ticking(lines))
        return self._progress


class _Warnings(logging.Handler):
    """Print each record of the logging module as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"medlt: {record.levelname.lower()}: {record.getMessage()}", err=True)
