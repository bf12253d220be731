"""Run tasks in worker processes that end with their parent process, however it ends.

A worker that outlives a killed parent would use the machine and hold its locks. On Linux the kernel kills a worker with
its parent (PR_SET_PDEATHSIG). On every system a thread of the worker also checks twice a second whether the parent is
alive and whether it requests a stop.
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
ENDED = (
    "a worker process ended unexpectedly: memory ran out, or a script calls medlt outside `if __name__ == "
    '"__main__":`; use fewer workers, or put the calls under that line, and run again (finished work is kept)'
)

K = TypeVar("K")
R = TypeVar("R")

_shared: list[Any] = []


class Stop(Protocol):
    """The part of a multiprocessing.Event that a worker uses."""

    def wait(self, timeout: float) -> bool:
        """Return whether the event was set within `timeout` seconds."""
        ...


def end_with_parent(parent: int, stop: Stop) -> None:
    """Let this process end when its parent, process id `parent`, has ended or sets `stop`.

    The process ignores Ctrl-C, which the terminal sends to parent and workers alike; the parent decides what to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call of prctl
        os._exit(1)
    Thread(target=_watch, args=(parent, stop), daemon=True).start()


def _watch(parent: int, stop: Stop) -> None:
    while os.getppid() == parent and not stop.wait(POLL):
        pass
    os._exit(1)


def _start_worker(shared: Any, parent: int, stop: Stop) -> None:
    """Store in this worker the data that all tasks share."""
    end_with_parent(parent, stop)
    _shared[:] = [shared]


def _call(function: Callable[..., R], task: tuple[Any, ...]) -> R:
    return function(_shared[0], *task)


def in_processes(
    function: Callable[..., R], tasks: Mapping[K, tuple[Any, ...]], *, shared: Any, workers: int
) -> Iterator[tuple[K, R]]:
    """Yield (key, function(shared, *task)) of every task, in the order in which they finish, from `workers` processes.

    `function` must be a module's function, and all arguments must be picklable. If a task fails or the caller stops
    iterating, the workers end at once. Raises InputError if a worker process ends unexpectedly.
    """
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (shared, os.getpid(), stop)) as pool:
        try:
            waiting = {pool.submit(_call, function, task): key for key, task in tasks.items()}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BrokenProcessPool:
            raise InputError(ENDED) from None
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
