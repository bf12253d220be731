"""Progress of a call: bars on a terminal, timestamped lines elsewhere, or a callback of the caller's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from medlt.progress import Bars, Lines, ProgressCallback, ticking
from medlt.types import Progress


class _Counts(ProgressCallback):
    """Give the counts to a plain callable; stages and notes are left out."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, done, total)


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@contextmanager
def displayed(progress: bool | Progress) -> Iterator[ProgressCallback]:
    """Yield a callback: of stderr for True, one that shows nothing for False, else one that calls `progress`."""
    if callable(progress):
        yield progress if isinstance(progress, ProgressCallback) else _Counts(progress)
    elif not progress:
        yield ProgressCallback()
    elif sys.stderr.isatty():
        with Bars() as bars:
            yield bars
    else:
        lines = Lines(_write)
        with ticking(lines):
            yield lines
