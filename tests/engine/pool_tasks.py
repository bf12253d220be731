"""Tasks for the pool's tests, in a module that a spawned process can import."""

import ctypes
import multiprocessing
import os
import signal
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

Task = tuple[str, int]


class OddError(Exception):
    """An exception that pickle cannot make again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def make() -> Callable[[Task], Any]:
    return work


def broken() -> Callable[[Task], Any]:
    raise ValueError("cannot be built")


def deadly() -> Callable[[Task], Any]:
    os._exit(3)


def lost(task: Task, how: str) -> str:
    return how


def work(task: Task) -> Any:
    kind, number = task
    if kind == "exit":
        os._exit(3)
    if kind == "segv":
        ctypes.string_at(0)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(600)
    if kind == "half":  # killed in the middle of an answer
        os.write(_pipe(), struct.pack("!i", 100_000) + b"x" * 10)
        os._exit(3)
    if kind == "big":
        return bytes(2_000_000)
    if kind == "device":
        time.sleep(0.05)
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()
    if kind == "actor":
        time.sleep(0.1)
        return number, _outer()
    if kind == "outer":
        os.kill(_outer(), signal.SIGKILL)
        time.sleep(600)
    if kind == "slow":
        time.sleep(0.25)
    if kind == "stop":
        raise OSError("No space left on device")
    if kind == "odd":  # an exception that cannot be sent
        raise OddError("one", "two")
    return number * number


def _outer() -> int:
    """The process that a pool is in; without a pool, this one."""
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def _pipe() -> int:
    """The one socket a worker has."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                return int(name)
        except OSError:
            continue
    raise OSError("no pipe")
