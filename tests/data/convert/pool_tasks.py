"""Tasks for the pool's tests, in a module that a spawned process can import."""

import ctypes
import os
import signal
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

Task = tuple[str, int]


def make() -> Callable[[Task], Any]:
    return work


def broken() -> Callable[[Task], Any]:
    raise ValueError("cannot be built")


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
    if kind == "slow":
        time.sleep(0.25)
    if kind == "stop":
        from medlt.data.convert.pool import Stopped

        raise Stopped("No space left on device")
    return number * number


def _pipe() -> int:
    """The one socket a worker has."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                return int(name)
        except OSError:
            continue
    raise OSError("no pipe")
