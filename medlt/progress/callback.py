"""The base class of what shows progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self


class ProgressCallback:
    """Ignore progress, stages and notes. Derived classes show them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `stage` are finished."""

    def begin(self, stage: str) -> None:
        """Report that a stage of a recipe begins."""

    def end(self, stage: str, error: BaseException | None = None) -> None:
        """Report that the innermost stage of a recipe ends, and the error that ended it, if any."""

    def note(self, text: str) -> None:
        """Report one line, such as an estimate."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report the beginning and the end of the block as a stage."""
        self.begin(name)
        try:
            yield
        except BaseException as error:
            self.end(name, error)
            raise
        self.end(name)


def ending(error: BaseException | None) -> str:
    """Return how a stage ended, for its last line: finished, interrupted, or stopped by an error."""
    if error is None:
        return "finished"
    return "stopped by an error" if isinstance(error, Exception) else "interrupted"
