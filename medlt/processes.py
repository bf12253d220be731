"""The processes of one distributed training, started by torchrun, and the messages of the first to the others.

All processes run the same code in the same order. Only the first one reads checkpoints, writes files and reports; the
others have what it has by the functions below, whose calls must come in the same order in every process. Messages are
bytes or JSON, never pickles. With one process every function does nothing, or calls its argument.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from medlt.types import InputError

T = TypeVar("T")
Build = Callable[[Path], None]
"""Writes the files of an artifact into a folder, which may hold files of an interrupted call."""
POLL = 0.2
"""Seconds between two attempts to open what the first process writes."""

PATIENCE = timedelta(days=7)
"""How long a process waits for another one, which may encode a whole collection meanwhile. A dead one is seen at once,
by its closed connection."""
GRACE_S = 10.0
"""How long a process that failed without a word waits for the one that reports why."""
FAILED = "medlt/failed"
_board: list[Any] = []
"""The key-value store of torchrun, which outlives a process of the training."""


class ProcessLostError(InputError):
    """Another process of the training ended, or cannot be reached."""


def _started(name: str, default: int) -> int:
    """Return a number that torchrun puts into the environment."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def started() -> int:
    """Return how many processes torchrun started together, whether they have joined or not."""
    return _started("WORLD_SIZE", 1) if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else 1


def number() -> int:
    """Return the number of this process, from 0."""
    return _started("RANK", 0) if started() > 1 else 0


def first() -> bool:
    """Return whether this is the first process, the one that writes."""
    return number() == 0


def count() -> int:
    """Return how many processes have joined."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


def join(device: str) -> None:
    """Join the other processes that were started with this one, and take its own GPU. A second call does nothing.

    Raises InputError if there are fewer GPUs than processes.
    """
    if started() < 2 or count() > 1:
        return
    import torch
    from torch import distributed

    cuda, here = device.startswith("cuda"), _started("LOCAL_WORLD_SIZE", 1)
    if ":" in device:
        raise InputError(f"device: {device}, but {started()} processes were started; write device: cuda, one for each")
    if cuda and torch.cuda.device_count() < here:
        raise InputError(
            f"{here} processes were started, but torch detects {torch.cuda.device_count()} GPUs; start one for each"
        )
    if cuda:
        torch.cuda.set_device(_started("LOCAL_RANK", 0))
    with _others():
        meeting: Any = distributed.rendezvous  # type: ignore[attr-defined]
        board, rank, size = next(meeting("env://", timeout=PATIENCE))
        _board[:] = [board]
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        distributed.init_process_group(backend, store=board, rank=rank, world_size=size, timeout=PATIENCE)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other processes for the block, and leave them at its end."""
    join(device)
    yield
    if count() > 1:
        from torch import distributed

        wait()
        distributed.destroy_process_group()


@contextmanager
def first_ahead() -> Iterator[None]:
    """Run the block in the first process, then in the others, which find what the first one stored."""
    if not first():
        wait()
    yield
    if first():
        wait()


@contextmanager
def _others() -> Iterator[None]:
    """Raise ProcessLostError if a message cannot be sent or received inside the block."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "another process of this training ended; run the same command again to resume, with any number of processes"
        ) from error


def speaks(error: BaseException | None = None) -> bool:
    """Return whether this process reports an error: one line for all processes.

    The first one reports what ends all of them, else the one in which it happened, before the others are lost.
    """
    if started() < 2:
        return True
    if isinstance(error, ProcessLostError | KeyboardInterrupt) and not first():
        return False
    if not _board:
        return first()
    try:
        return bool(_board[0].add(FAILED, 1) == 1)
    except RuntimeError:
        return first()


def end_later() -> None:
    """Wait until torchrun ends this process: it ends all others as soon as one has failed, also one that still reports
    the error."""
    time.sleep(GRACE_S)


def named(line: str) -> str:
    """Return the line of an error, with the number of the process if it is not the first."""
    return line if first() else f"process {number()}: {line}"


def reduce(values: Any, mean: bool = False) -> Any:
    """Replace a tensor by its sum, or mean, over all processes, in place, and return it."""
    if count() > 1:
        from torch import distributed

        with _others():
            distributed.all_reduce(values)
        if mean:
            values /= count()
    return values


def spread(values: Any) -> Any:
    """Replace a tensor by that of the first process, in place, and return it."""
    if count() > 1:
        from torch import distributed

        with _others():
            distributed.broadcast(values, 0)
    return values


def wait() -> None:
    """Wait for all processes."""
    if count() > 1:
        import torch

        reduce(torch.zeros(1))


def content(make: Callable[[], bytes]) -> bytes:
    """Return make() of the first process, in all of them."""
    if count() < 2:
        return make()
    import torch

    own = make() if first() else b""
    size = int(spread(torch.tensor([len(own)])))
    return bytes(spread(torch.frombuffer(bytearray(own), dtype=torch.uint8) if first() else _empty(size)).numpy())


def _empty(size: int) -> Any:
    import torch

    return torch.empty(size, dtype=torch.uint8)


def value(make: Callable[[], T]) -> T:
    """Return make() of the first process, in all of them: numbers, text, and lists and mappings of them."""
    if count() < 2:
        return make()
    received: T = json.loads(content(lambda: json.dumps(make()).encode()))
    return received


def made_by_first(own: Build, lead: Callable[[Build], T], follow: Callable[[], T | None], joint: bool) -> T:
    """Return what `lead` makes by calling `own` in the first process, or has already, in all processes.

    The others call `follow` until it returns it. If `joint`, and if the first process calls `own`, they call it too,
    at the same time, on a folder that is deleted.
    """
    if joint and count() < started():
        raise InputError("several processes were started; join them by `with medlt.processes.joined(device)` first")
    if count() > 1 and not first():
        if joint and value(lambda: True):
            with tempfile.TemporaryDirectory(prefix="medlt-") as scratch:
                own(Path(scratch))
        while (made := follow()) is None:
            time.sleep(POLL)
        return made
    begun: list[Path] = []

    def announced(folder: Path) -> None:
        begun.append(folder)
        if joint:
            value(lambda: True)
        own(folder)

    made = lead(announced)
    if joint and not begun:
        value(lambda: False)
    return made
