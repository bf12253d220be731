"""Work in several processes that end with the one that began them, however that one ends.

A worker that trains on after its parent was killed would take the machine's time and hold its locks. On Linux the
kernel kills it with the parent (PR_SET_PDEATHSIG); everywhere a thread of its own asks twice a second whether the
parent is still there, and whether it wants the worker to stop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from threading import Thread
from typing import Any, Protocol, TypeVar

from medlt.types import InputError

POLL = 0.5  # seconds
PR_SET_PDEATHSIG = 1

K = TypeVar("K")
R = TypeVar("R")

_shared: list[Any] = []


class Stop(Protocol):
    """A multiprocessing.Event, of which a worker asks whether it is set."""

    def wait(self, timeout: float) -> bool:
        """Return whether it was set within so many seconds."""
        ...


def end_with_parent(parent: int, stop: Stop) -> None:
    """Let this process end when its parent, process `parent`, is gone or sets `stop`; it does not heed Ctrl-C itself.

    The terminal sends Ctrl-C to parent and workers alike; the parent decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)
    Thread(target=_watch, args=(parent, stop), daemon=True).start()


def _watch(parent: int, stop: Stop) -> None:
    while os.getppid() == parent and not stop.wait(POLL):
        pass
    os._exit(1)


def _begin(shared: Any, parent: int, stop: Stop) -> None:
    """Each worker is given once what all tasks share."""
    end_with_parent(parent, stop)
    _shared[:] = [shared]


def _call(function: Callable[..., R], task: tuple[Any, ...]) -> R:
    return function(_shared[0], *task)


def in_processes(
    function: Callable[..., R], tasks: Mapping[K, tuple[Any, ...]], *, shared: Any, workers: int
) -> Iterator[tuple[K, R]]:
    """Yield (key, function(shared, *task)) of every task in whatever order they end, from `workers` processes.

    `function` is one of a module, and all it is given can be pickled. When a task fails, or the caller stops, the
    workers end at once. Raises InputError where a worker ended by itself.
    """
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (shared, os.getpid(), stop)) as pool:
        try:
            waiting = {pool.submit(_call, function, task): key for key, task in tasks.items()}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BrokenProcessPool:
            why = "a worker process ended by itself, perhaps for want of memory"
            raise InputError(f"{why}; give fewer workers, and run again: what is finished is kept") from None
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
