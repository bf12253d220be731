"""The choice of an engine, and the one call that runs tasks on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from medlt.engine.pool import AHEAD, Pool, start_early
from medlt.types import InputError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class EngineChoice:
    """Where tasks run: kind local is processes of this machine, ray is Ray, which `medlt[ray]` installs.

    workers: number of worker processes. gpus: number of GPUs that the workers share evenly; 0 leaves the choice of a
    device to the task. address: of a Ray cluster; None starts Ray on this machine.
    """

    kind: Literal["local", "ray"] = "local"
    workers: int = 1
    gpus: int = 0
    address: str | None = None

    def environments(self) -> list[dict[str, str]]:
        """Return the environment of each worker: CUDA_VISIBLE_DEVICES is one GPU of those that this process may use."""
        if not self.gpus:
            return [{}]
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = given.split(",") if given else [str(i) for i in range(_gpus_here())]
        if len(names) < self.gpus:
            place = "CUDA_VISIBLE_DEVICES" if given else "this machine"
            raise InputError(f"gpus: {self.gpus} requested, but {place} has {len(names)}; lower gpus")
        return [{"CUDA_VISIBLE_DEVICES": name} for name in names[: self.gpus]]


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def ready(engine: EngineChoice, module: str) -> Iterator[None]:
    """Start an engine at the beginning of this block, so that it is there when tasks come; Ray ends with the block.

    Its workers import `module`, that of the tasks, while this process goes on. Raises InputError as `run_tasks` does,
    and for more GPUs than there are.
    """
    if engine.address is None:
        engine.environments()
    if engine.kind == "ray":
        from medlt.engine.on_ray import connected

        with connected(engine, module):
            yield
        return
    start_early(module)
    yield


def run_tasks(
    engine: EngineChoice,
    make: Callable[..., Callable[[T], R]],
    args: tuple[Any, ...],
    tasks: Iterable[T],
    lost: Callable[[T, str], R],
    *,
    ahead: int = AHEAD,
    timeout_s: float | None = None,
) -> Iterator[tuple[T, R]]:
    """Yield (task, result) of every task, in the order in which they finish; see `Pool` for the arguments.

    Raises the first exception of a task, and InputError if the engine cannot start.
    """
    if engine.kind == "ray":
        from medlt.engine.on_ray import run_on_ray

        yield from run_on_ray(engine, make, args, tasks, lost, ahead=ahead, timeout_s=timeout_s)
        return
    environments = engine.environments()
    with Pool(
        make, args, lost, workers=engine.workers, timeout_s=timeout_s, ahead=ahead, environments=environments
    ) as pool:
        yield from pool.run(tasks)
