"""A parent with two busy workers, as a script: its argument is a folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from medlt.engine import EngineChoice, run_tasks


def busy(folder: Path) -> Callable[[int], int]:
    """Return a task that writes the process id to a file and keeps busy for longer than any test."""

    def work(number: int) -> int:
        (folder / f"{number}.pid").write_text(str(os.getpid()))
        end = time.monotonic() + 300
        while time.monotonic() < end:
            sum(range(10_000))
        return number

    return work


def lost(number: int, how: str) -> int:
    """Return what stands for a lost task."""
    return -1


if __name__ == "__main__":
    list(run_tasks(EngineChoice(workers=2), busy, (Path(sys.argv[1]),), range(2), lost, ahead=1))
