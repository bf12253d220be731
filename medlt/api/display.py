"""Progress of a call: bars on a terminal, timestamped lines elsewhere, or a reporter of the caller's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from medlt.progress import Bars, Lines, Reporter, ticking
from medlt.types import Progress


class _Counts(Reporter):
    """Give the counts to a plain callable; stages and notes are left out."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, done, total)


@contextmanager
def displayed(progress: bool | Progress) -> Iterator[Reporter]:
    """Yield a reporter: of stderr for True, one that shows nothing for False, else one that calls `progress`."""
    if callable(progress):
        yield progress if isinstance(progress, Reporter) else _Counts(progress)
    elif not progress:
        yield Reporter()
    elif sys.stderr.isatty():
        with Bars() as bars:
            yield bars
    else:
        lines = Lines(lambda line: sys.stderr.write(f"{line}\n"))
        with ticking(lines):
            yield lines
