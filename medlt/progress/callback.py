"""What every reporter of progress takes; the others derive from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self


class ProgressCallback:
    """Take progress, stages and notes, and show nothing; the others derive from it."""

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

    def end(self, stage: str, failed: bool = False) -> None:
        """Report that the innermost stage of a recipe ends."""

    def note(self, text: str) -> None:
        """Report one line, such as an estimate."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report the beginning and the end of the block as a stage."""
        self.begin(name)
        try:
            yield
        except BaseException:
            self.end(name, failed=True)
            raise
        self.end(name)
