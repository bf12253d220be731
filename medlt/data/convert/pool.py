"""A process pool that survives workers that hang or crash: only the file that caused it is lost.

concurrent.futures breaks the whole pool when one worker dies, and cannot stop one that hangs. Here every worker has its
own pipe, returns results one by one, and is replaced if necessary.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE_S = 2.0
AHEAD = 8  # tasks that a worker receives at once, so that it does not wait for the parent


def _context(module: str) -> ForkServerContext | SpawnContext:
    """Return a context whose processes do not share the parent's state, and start with `module` imported if possible.

    A fork server imports it once and forks in milliseconds; Windows has none, and every process imports it again.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


class Stopped(Exception):  # noqa: N818
    """Raised by a task to stop the whole run; the text is one line."""


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    pipe: Connection
    tasks: deque[T] = field(default_factory=deque)
    since: float = 0.0


def _serve(make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...], pipe: Connection) -> None:
    """Run a worker: build the function once, then process tasks until the pipe closes."""
    try:
        function = make(*args)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    try:
        while True:
            for task in pipe.recv():
                try:
                    answer = function(task)
                except Stopped as error:
                    answer = error
                pipe.send(answer)
    except (EOFError, OSError, KeyboardInterrupt):
        return


class Pool(Generic[T, R]):
    """Runs tasks in `workers` processes of their own. Each calls `make(*args)` once, which returns the function to run.

    `lost(task, how)` returns the result of a task that took longer than `timeout_s` ('timeout') or whose worker died
    ('crashed').
    """

    def __init__(
        self,
        make: Callable[..., Callable[[T], R]],
        args: tuple[Any, ...],
        lost: Callable[[T, str], R],
        *,
        workers: int,
        timeout_s: float,
    ) -> None:
        self._context = _context(make.__module__)
        self._make, self._args, self._lost = make, args, lost
        self._timeout_s = timeout_s
        self._workers = [self._start() for _ in range(workers)]
        for worker in self._workers:
            self._greet(worker)

    def __enter__(self) -> Pool[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + _PATIENCE_S  # time to finish a file, so that none is left half written
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            self._stop(worker)

    def run(self, tasks: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Yield (task, result) in the order of completion. Raises Stopped if a task does."""
        queue = iter(tasks)
        pending = sum(self._feed(worker, queue) for worker in self._workers)
        while pending:
            wait([w.pipe for w in self._workers if w.tasks], timeout=1.0)
            for at, worker in enumerate(self._workers):  # poll again: the consumer may be slow
                done = self._answers(worker) if worker.tasks and worker.pipe.poll() else self._overdue(worker)
                if worker.pipe.closed:
                    self._workers[at] = self._again(worker.tasks)
                yield from done
                pending += self._feed(self._workers[at], queue) - len(done)

    def _start(self) -> _Worker[T]:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._make, self._args, theirs), daemon=True)
        with worker_environment():
            process.start()
        theirs.close()
        return _Worker(process, mine)

    def _again(self, tasks: Iterable[T]) -> _Worker[T]:
        """Start a worker with the tasks that its predecessor had not begun."""
        worker = self._start()
        self._greet(worker)
        self._give(worker, list(tasks))
        return worker

    @staticmethod
    def _greet(worker: _Worker[T]) -> None:
        try:
            problem = worker.pipe.recv()
        except EOFError:
            problem = "it ended"
        if problem:
            raise RuntimeError(f"a worker process did not start: {problem}")

    @staticmethod
    def _give(worker: _Worker[T], tasks: list[T]) -> None:
        if not tasks:
            return
        if not worker.tasks:
            worker.since = time.monotonic()
        worker.tasks.extend(tasks)
        with suppress(OSError):  # the worker just died; reading from its pipe fails next
            worker.pipe.send(tasks)

    def _feed(self, worker: _Worker[T], queue: Iterator[T]) -> int:
        """Send tasks to a worker that has few; return how many."""
        if len(worker.tasks) > AHEAD // 2:
            return 0
        tasks = list(islice(queue, AHEAD - len(worker.tasks)))
        self._give(worker, tasks)
        return len(tasks)

    def _answers(self, worker: _Worker[T]) -> list[tuple[T, R]]:
        """Return all results in the pipe; if the pipe is broken, the current task is lost."""
        done: list[tuple[T, R]] = []
        try:
            while worker.tasks and worker.pipe.poll():
                answer = worker.pipe.recv()
                if isinstance(answer, Stopped):
                    raise answer
                done.append((worker.tasks.popleft(), answer))
                worker.since = time.monotonic()
        except (EOFError, OSError):
            done.append(self._give_up(worker, "crashed"))
        return done

    def _overdue(self, worker: _Worker[T]) -> list[tuple[T, R]]:
        if not worker.tasks or time.monotonic() - worker.since < self._timeout_s:
            return []
        return [self._give_up(worker, "timeout")]

    def _give_up(self, worker: _Worker[T], how: str) -> tuple[T, R]:
        task = worker.tasks.popleft()
        self._stop(worker)
        return task, self._lost(task, how)

    @staticmethod
    def _stop(worker: _Worker[T]) -> None:
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()
        worker.process.close()


class worker_environment:  # noqa: N801
    """Context manager that sets environment variables for the processes started inside.

    Numeric libraries use one thread each: two processes with one thread are faster than one with two. The C allocator
    keeps large blocks: mapping and unmapping a radiograph's buffers for every file costs a third of its time.
    """

    _SET = {  # noqa: RUF012
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # the largest value that every glibc accepts
        "MALLOC_TRIM_THRESHOLD_": str(1 << 27),
    }

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._SET}
        os.environ.update(self._SET)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
