"""A process pool that survives workers that hang or crash: only the task that caused it is lost.

concurrent.futures breaks the whole pool when one worker dies, and cannot stop one that hangs. Here every worker has its
own pipe, returns results one by one, and is replaced if necessary. Workers end with their parent process, however it
ends: one that outlived it would use the machine and hold its locks.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, TypeVar

from medlt.types import InputError

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE_S = 2.0
AHEAD = 8  # short tasks that a worker receives at once, so that it does not wait for the parent
NOT_STARTED = (
    'a worker process ended while it started: a script must call medlt below `if __name__ == "__main__":`, and fewer '
    "workers need less memory"
)


def _context(module: str) -> ForkServerContext | SpawnContext:
    """Return a context whose processes do not share the parent's state, and start with `module` imported if possible.

    A fork server imports it once and forks in milliseconds; Windows has none, and every process imports it again.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def start_early(module: str) -> None:
    """Let the process that forks workers start now and import `module`, while this one goes on."""
    if _context(module).get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with worker_environment():
            forkserver.ensure_running()


@dataclass(frozen=True)
class _Raised:
    """The exception of a task, on its way to the parent."""

    error: Exception


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    pipe: Connection
    tasks: deque[T] = field(default_factory=deque)
    since: float = 0.0


def end_with_parent() -> None:
    """Let this process end when the process that started it ends.

    It ignores Ctrl-C, which a terminal sends to parent and workers alike; the parent decides what to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _serve(
    make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...], own: Mapping[str, str], pipe: Connection
) -> None:
    """Run a worker: build the function once, then process tasks until the pipe closes. own: environment variables."""
    end_with_parent()
    os.environ.update(own)
    try:
        function = make(*args)
    except Exception as error:
        pipe.send(_Raised(sendable(error)))
        return
    pipe.send(None)
    with suppress(EOFError, OSError):
        while True:
            for task in pipe.recv():
                pipe.send(_answer(function, task))


def _answer(function: Callable[[Any], Any], task: Any) -> Any:
    """Return the result of a task, or what it raised, as something that can be sent."""
    try:
        return function(task)
    except Exception as error:
        return _Raised(sendable(error))


def sendable(error: Exception) -> Exception:
    """Return an exception that survives the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Pool(Generic[T, R]):
    """Runs tasks in `workers` processes of their own. Each calls `make(*args)` once, which returns the function to run.

    `make` must be a module's function, and everything must be picklable. `lost(task, how)` returns the result of a task
    that took longer than `timeout_s` ('timeout') or whose worker died ('crashed'); None stands for no limit. A worker
    holds at most `ahead` tasks. environments: variables of each worker, used in turn.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[T], R]],
        args: tuple[Any, ...],
        lost: Callable[[T, str], R],
        *,
        workers: int,
        timeout_s: float | None = None,
        ahead: int = AHEAD,
        environments: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        self._context = _context(make.__module__)
        self._make, self._args, self._lost = make, args, lost
        self._timeout_s, self._ahead = float("inf") if timeout_s is None else timeout_s, ahead
        self._own = [environments[i % len(environments)] for i in range(workers)]
        self._workers = [self._start(own) for own in self._own]
        try:
            for worker in self._workers:
                self._greet(worker)
        except BaseException:
            self.__exit__()
            raise

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
        """Yield (task, result) in the order of completion. Raises the first exception of a task."""
        queue = iter(tasks)
        pending = sum(self._feed(worker, queue) for worker in self._workers)
        while pending:
            wait([w.pipe for w in self._workers if w.tasks], timeout=1.0)
            for at, worker in enumerate(self._workers):  # poll again: the consumer may be slow
                done = self._answers(worker) if worker.tasks and worker.pipe.poll() else self._overdue(worker)
                if worker.pipe.closed:
                    self._workers[at] = self._again(worker.tasks, self._own[at])
                yield from done
                pending += self._feed(self._workers[at], queue) - len(done)

    def _start(self, own: Mapping[str, str]) -> _Worker[T]:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._make, self._args, own, theirs), daemon=True)
        with worker_environment():
            process.start()
        theirs.close()
        return _Worker(process, mine)

    def _again(self, tasks: Iterable[T], own: Mapping[str, str]) -> _Worker[T]:
        """Start a worker with the tasks that its predecessor had not begun."""
        worker = self._start(own)
        self._greet(worker)
        self._give(worker, list(tasks))
        return worker

    @staticmethod
    def _greet(worker: _Worker[T]) -> None:
        try:
            problem = worker.pipe.recv()
        except (EOFError, OSError):
            raise InputError(NOT_STARTED) from None
        if isinstance(problem, _Raised):
            raise problem.error

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
        if len(worker.tasks) > self._ahead // 2:
            return 0
        tasks = list(islice(queue, self._ahead - len(worker.tasks)))
        self._give(worker, tasks)
        return len(tasks)

    def _answers(self, worker: _Worker[T]) -> list[tuple[T, R]]:
        """Return all results in the pipe; if the pipe is broken, the current task is lost."""
        done: list[tuple[T, R]] = []
        while worker.tasks:
            try:
                if not worker.pipe.poll():
                    break
                answer = worker.pipe.recv()
            except (EOFError, OSError):
                return [*done, self._give_up(worker, "crashed")]
            if isinstance(answer, _Raised):
                raise answer.error
            done.append((worker.tasks.popleft(), answer))
            worker.since = time.monotonic()
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
    """Context manager that sets environment variables for the processes started inside, and `own`.

    Numeric libraries use one thread each: two processes with one thread are faster than one with two. The C allocator
    keeps large blocks: mapping and unmapping a radiograph's buffers for every file costs a third of its time.
    """

    _SET = {  # noqa: RUF012
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # the largest value that every glibc accepts
        "MALLOC_TRIM_THRESHOLD_": str(1 << 27),
    }

    def __init__(self, own: Mapping[str, str] | None = None) -> None:
        self._set = self._SET | dict(own or {})

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._set}
        os.environ.update(self._set)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
