"""The Ray engine: tasks on a Ray cluster, as actors of Ray Data that hold one process of the local pool each.

A task that hangs or kills its process therefore ends as it does on one machine, and is not tried for ever. An actor or
a node that is lost is replaced by Ray, which gives its batches to another. Files are read and written by path, so all
nodes need the same shared folders. Statistics of use and the dashboard of Ray stay off. What is pickled are messages
between the processes of one run, as in `multiprocessing`; no pickle is ever a file.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medlt.engine.pool import Pool
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.engine.choice import EngineChoice

T = TypeVar("T")
R = TypeVar("R")

HELD = 4
"""Batches that an actor holds at most: one that it works on, the others wait."""
STORE_BYTES = 256 << 20
"""Shared memory of a Ray that medlt starts: tasks and their answers are small."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


class _Actor:
    """A pool of one process, kept between batches. packed: make, args and lost of the pool."""

    def __init__(self, packed: bytes, timeout_s: float | None, ahead: int) -> None:
        make, args, lost = pickle.loads(packed)
        self._pool: Pool[Any, Any] = Pool(make, args, lost, workers=1, timeout_s=timeout_s, ahead=ahead)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return place and packed answer of each task of a batch; place -1 is an exception that ends the run."""
        tasks = [pickle.loads(one) for one in batch["packed"]]
        places = {id(task): int(place) for task, place in zip(tasks, batch["place"], strict=True)}
        answers: list[tuple[int, Any]] = []
        try:
            answers += [(places[id(task)], result) for task, result in self._pool.run(tasks)]
        except Exception as error:
            answers = [(-1, error)]
        return {
            "place": np.array([place for place, _ in answers]),
            "packed": np.array([pickle.dumps(result) for _, result in answers], dtype=object),
        }


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
    given = list(tasks)
    if not given:
        return
    with _connected(engine) as ray:
        answers = _answers(ray, engine, given, pickle.dumps((make, args, lost)), ahead, timeout_s)
        try:
            for answer in answers.iter_rows():
                result = pickle.loads(answer["packed"])
                if answer["place"] < 0:
                    raise result
                yield given[answer["place"]], result
        except ray.exceptions.RayError as error:
            line = str(error).strip().splitlines()[-1]
            raise InputError(f"ray: {line}; run the same command again, which resumes") from None


def _answers(
    ray: Any, engine: EngineChoice, given: list[Any], packed: bytes, ahead: int, timeout_s: float | None
) -> Any:
    """Return a Ray data set of the answers to all tasks, which computes them when it is read."""
    items = [{"place": i, "packed": pickle.dumps(task)} for i, task in enumerate(given)]
    batches = -(-len(items) // ahead)
    return ray.data.from_items(items, override_num_blocks=batches).map_batches(
        _Actor,
        batch_size=None,
        batch_format="numpy",
        fn_constructor_args=(packed, timeout_s, ahead),
        compute=ray.data.ActorPoolStrategy(
            size=min(engine.workers, batches), max_tasks_in_flight_per_actor=HELD, max_concurrent_calls_per_actor=1
        ),
        num_cpus=1,
        num_gpus=engine.gpus / engine.workers,
    )


@contextmanager
def _connected(engine: EngineChoice) -> Iterator[Any]:
    """Yield the module ray, connected to the cluster, or to one of this machine that ends with the block.

    Raises InputError if Ray is not installed or the cluster does not answer.
    """
    os.environ.update(QUIET)
    try:
        import ray
        import ray.data
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
                ray.init("local", **quiet, **alone, **({"num_gpus": engine.gpus} if engine.gpus else {}))
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"ray_address: {engine.address or 'this machine'}: {reason}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()
