"""What a command shows: its result on stdout, and progress, warnings and notes on stderr."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import IO, Any, Self

import typer

from medlt.progress import Bars, Lines, ProgressCallback, ticking


class Terminal(ProgressCallback):
    """One command's output. It is a reporter of progress too, to be handed to whatever works long.

    as_json: the result is one JSON object; volume: True shows details, False only warnings and the result. Inside the
    `with` block sys.stdout is stderr, so that nothing but the result reaches stdout.
    """

    def __init__(self, as_json: bool = False, volume: bool | None = None) -> None:
        self.as_json, self.details, self.quiet = as_json, volume is True, volume is False
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
        self._shown()(stage, done, total)

    def begin(self, stage: str) -> None:
        """Show that a stage of a recipe begins."""
        self._shown().begin(stage)

    def end(self, stage: str, failed: bool = False) -> None:
        """Show that the innermost stage of a recipe ends."""
        self._shown().end(stage, failed)

    def note(self, text: str) -> None:
        """Show one line."""
        self._shown().note(text)

    def say(self, value: dict[str, Any], table: Callable[[], object]) -> None:
        """Print the result: `value` as JSON, or the rich table that `table` builds."""
        self._finish_progress()
        if self.as_json:
            self.line(self._json(value))
            return
        from rich.console import Console

        Console(file=self._out).print(table())

    def say_lines(self, value: dict[str, Any], lines: Sequence[str]) -> None:
        """Print the result: `value` as JSON, or plain lines, which a pipe can take apart."""
        self._finish_progress()
        for line in [self._json(value)] if self.as_json else lines:
            self.line(line)

    def mention(self, text: str) -> None:
        """Print one line beside the result on stderr, unless quiet."""
        if not self.quiet:
            typer.echo(text, err=True)

    def line(self, text: object) -> None:
        """Print one line of the result."""
        typer.echo(str(text), file=self._out)

    def _json(self, value: dict[str, Any]) -> str:
        return json.dumps(_jsonable(value), default=str)

    def _finish_progress(self) -> None:
        """Take the bars away, so that the result is printed below them."""
        self._work.close()
        self._progress = None

    def _shown(self) -> ProgressCallback:
        """Return what shows progress: bars on a terminal, lines elsewhere, nothing if quiet."""
        if self._progress is None:
            if self.quiet:
                self._progress = ProgressCallback()
            elif sys.stderr.isatty():
                self._progress = self._work.enter_context(Bars(self.details))
            else:
                self._progress = lines = Lines(lambda line: typer.echo(line, err=True))
                self._work.enter_context(ticking(lines))
        return self._progress


def _jsonable(value: Any) -> Any:
    """Return the value with strings as keys and None for numbers that JSON has not, and numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    if not isinstance(value, str | int | float) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Warnings(logging.Handler):
    """Print each record of the logging module as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"medlt: {record.levelname.lower()}: {record.getMessage()}", err=True)
