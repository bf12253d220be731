"""The Ray engine: batches of tasks on the actors of a Ray cluster.

An actor works in its own process. One that is lost is replaced, wherever the cluster has room, and its batches go to
the others; the new one keeps a local pool of one process, so that a task that kills its process ends as it does on one
machine. Tasks with a limit of time run in such a pool from the start. Files are read and written by path, so all
nodes need the same shared folders. Statistics of use and the dashboard of Ray stay off. What is pickled are messages
between the processes of one run, as in `multiprocessing`; no pickle is ever a file.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from medlt.engine.pool import Pool, sendable, worker_environment
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.engine.choice import EngineChoice

T = TypeVar("T")
R = TypeVar("R")
Batch = list[Any]

HELD = 2
"""Batches that an actor holds at most: one that it works on, and one that waits."""
DEATHS = 10
"""Actors that are lost in a row, without one answer between them, before a run ends."""
PATIENCE_S = 60.0
"""Silence after which a run says that it waits for the cluster."""
STORE_BYTES = 256 << 20
"""Shared memory of a Ray that medlt starts: tasks and their answers are small."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
log = logging.getLogger(__name__)


class _Actor:
    """Runs batches of tasks. packed: make, args and lost of a pool; isolated: in a process of its own."""

    def __init__(self, packed: bytes, timeout_s: float | None, ahead: int, isolated: bool) -> None:
        self._given, self._timeout_s, self._ahead, self._isolated = packed, timeout_s, ahead, isolated

    def start(self) -> Exception | None:
        """Build the function; return what that raised."""
        try:
            make, args, lost = pickle.loads(self._given)
            if self._isolated:
                pool = Pool(make, args, lost, workers=1, timeout_s=self._timeout_s, ahead=self._ahead)
                self._run: Callable[[Batch], Iterable[tuple[Any, Any]]] = pool.run
            else:
                function = make(*args)
                self._run = lambda tasks: ((task, function(task)) for task in tasks)
        except Exception as error:
            return sendable(error)
        return None

    def run(self, packed: bytes) -> tuple[list[tuple[int, Any]], Exception | None]:
        """Return the place and the result of each task of a batch, and the exception that ended it."""
        tasks = pickle.loads(packed)
        places = {id(task): place for place, task in enumerate(tasks)}
        answers: list[tuple[int, Any]] = []
        try:
            answers += [(places[id(task)], result) for task, result in self._run(tasks)]
        except Exception as error:
            return answers, sendable(error)
        return answers, None


class _Crew:
    """The actors of a run, and what each of them holds."""

    def __init__(self, ray: Any, resources: dict[str, float], args: tuple[Any, ...], isolated: bool) -> None:
        self._ray, self._args, self._isolated = ray, args, isolated
        self._class = ray.remote(_Actor).options(**resources, max_restarts=0)
        self._calls: dict[Any, tuple[Any, Batch | None]] = {}  # a call -> its actor and batch; None: the actor's start
        self._again: deque[Batch] = deque()
        self._deaths = 0

    def run(self, batches: Iterator[Batch], workers: int) -> Iterator[tuple[Batch, list[tuple[int, Any]]]]:
        """Yield the batches with their answers, in the order in which they are finished."""
        self._again.extend(islice(batches, workers))
        for _ in range(len(self._again)):
            self._start(self._isolated)
        try:
            while self._again or any(batch is not None for _, batch in self._calls.values()):
                for call in self._finished():
                    yield from self._answer(call, batches)
        finally:
            for actor in {actor for actor, _ in self._calls.values()}:
                self._ray.kill(actor)

    def _start(self, isolated: bool) -> None:
        actor = self._class.remote(*self._args, isolated)
        self._calls[actor.start.remote()] = (actor, None)

    def _finished(self) -> list[Any]:
        """Return finished calls, at least one."""
        done, _ = self._ray.wait(list(self._calls), timeout=PATIENCE_S)
        if not done:
            log.warning("ray: no answer for %.0f s; `ray status` shows what the cluster waits for", PATIENCE_S)
            done, _ = self._ray.wait(list(self._calls))
        return list(done)

    def _answer(self, call: Any, batches: Iterator[Batch]) -> Iterator[tuple[Batch, list[tuple[int, Any]]]]:
        """Yield the answers of one call, if it has any, and give its actor more to do."""
        if call not in self._calls:  # its actor was lost after this call had been seen to finish
            return
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            self._replace(self._calls[call][0], error)
            return
        actor, batch = self._calls.pop(call)
        answers, raised = ([], answer) if batch is None else answer
        self._feed(actor, batches)
        if batch is not None:
            self._deaths = 0
            yield batch, answers
        if raised is not None:
            raise raised

    def _feed(self, actor: Any, batches: Iterator[Batch]) -> None:
        """Give an actor batches until it holds HELD."""
        held = sum(one == actor for one, _ in self._calls.values())
        while held < HELD and (batch := self._next(batches)) is not None:
            self._calls[actor.run.remote(pickle.dumps(batch))] = (actor, batch)
            held += 1

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        return self._again.popleft() if self._again else next(batches, None)

    def _replace(self, actor: Any, error: Exception) -> None:
        """Start another actor in the place of one that is lost, whose batches are done again."""
        self._deaths += 1
        if self._deaths == DEATHS:
            line = str(error).strip().splitlines()[0]
            raise InputError(
                f"ray: {DEATHS} workers in a row ended before they answered, as happens when memory runs out ({line}); "
                "use fewer, and run the same command again, which resumes"
            )
        self._ray.kill(actor)
        lost = {call: batch for call, (one, batch) in self._calls.items() if one == actor}
        self._again.extend(batch for batch in lost.values() if batch is not None)
        self._calls = {call: given for call, given in self._calls.items() if call not in lost}
        self._start(isolated=True)


def run_on_ray(
    engine: EngineChoice,
    make: Callable[..., Callable[[T], R]],
    args: tuple[Any, ...],
    tasks: Iterable[T],
    lost: Callable[[T, str], R],
    *,
    ahead: int,
    timeout_s: float | None,
) -> Iterator[tuple[T, R]]:
    """Yield (task, result) as `run_tasks` does. A batch is `ahead` tasks."""
    queue = iter(tasks)
    batches = iter(lambda: list(islice(queue, ahead)), [])
    resources = {"num_cpus": 1, "num_gpus": engine.gpus / engine.workers}
    with connected(engine, make.__module__) as ray:
        crew = _Crew(ray, resources, (pickle.dumps((make, args, lost)), timeout_s, ahead), timeout_s is not None)
        try:
            for batch, answers in crew.run(batches, engine.workers):
                yield from ((batch[place], result) for place, result in answers)
        except ray.exceptions.RayError as error:
            line = str(error).strip().splitlines()[-1]
            raise InputError(f"ray: {line}; run the same command again, which resumes") from None


@contextmanager
def connected(engine: EngineChoice, module: str) -> Iterator[Any]:
    """Yield the module ray, connected to the cluster, or to one of this machine that ends with the block.

    A Ray that is started here imports `module` in its worker processes at once.
    Raises InputError if Ray is not installed or the cluster does not answer.
    """
    os.environ.update(QUIET)
    try:
        import ray
    except ImportError:
        raise InputError('engine: ray is not installed; pip install "medlt[ray]"') from None
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    alone = {"num_cpus": engine.workers, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    begun = not ray.is_initialized()
    if begun:
        try:
            if engine.address:
                ray.init(engine.address, **quiet)
            else:
                with worker_environment({"RAY_preload_python_modules": module}):
                    ray.init("local", **quiet, **alone, **({"num_gpus": engine.gpus} if engine.gpus else {}))
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"ray_address: {engine.address or 'this machine'}: {reason}") from None
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()
