"""A parent with two busy workers, as a script: its arguments are a folder and what ends the workers, kernel or poll."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from medlt.evaluation import workers

if "poll" in sys.argv:  # also read by the workers, which import this file before they begin
    workers.PR_SET_PDEATHSIG = 1 << 20  # unknown to the kernel


def work(folder: Path, number: int) -> int:
    """Write the process id to a file and keep busy for longer than any test."""
    (folder / f"{number}.pid").write_text(str(os.getpid()))
    end = time.monotonic() + 300
    while time.monotonic() < end:
        sum(range(10_000))
    return number


def double(shared: int, number: int) -> int:
    """Return shared + 2 number; raise an error for 13."""
    if number == 13:
        raise ValueError("13")
    return shared + 2 * number


def die(shared: int, number: int) -> None:
    """End the worker without an exception."""
    os._exit(3)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    list(workers.in_processes(work, {n: (n,) for n in range(2)}, shared=place, workers=2))
