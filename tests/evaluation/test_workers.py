"""Workers end with their parent process, however it ends, and their results are those of one process."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medlt.evaluation.workers import in_processes
from medlt.types import InputError

SOON = 10.0  # seconds in which workers have to be gone
LONG = 120.0  # seconds after which something is wrong


@pytest.fixture(scope="module")
def tasks() -> Iterator[Any]:
    """The module of tasks, on the path that spawned processes inherit."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield importlib.import_module("worker_tasks")
    sys.path.remove(str(Path(__file__).parent))


def until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def runs(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return not (status.is_file() and status.read_text().rpartition(")")[2].split()[0] in "ZX")
    except OSError:
        return False


@pytest.mark.parametrize("ended_by", ["kernel", "poll"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tasks: Any, tmp_path: Path, number: signal.Signals, ended_by: str) -> None:
    with (tmp_path / "log.txt").open("w") as log:
        command = [sys.executable, tasks.__file__, str(tmp_path), ended_by]
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
        parent = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=heard)
    pids: list[int] = []
    try:
        files = [tmp_path / f"{n}.pid" for n in range(2)]
        assert until(lambda: all(file.is_file() and file.read_text() for file in files), LONG)
        pids = [int(file.read_text()) for file in files]
        assert all(map(runs, pids))
        parent.send_signal(number)
        assert until(lambda: not any(map(runs, pids)), SOON), (tmp_path / "log.txt").read_text()
        assert parent.wait(SOON) != 0
    finally:
        for pid in [parent.pid, *pids]:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
        parent.wait()


def test_every_task_is_done_once_whatever_the_order(tasks: Any) -> None:
    given = {f"k{n}": (n,) for n in range(7)}
    results = list(in_processes(tasks.double, given, shared=100, workers=2))
    assert dict(results) == {f"k{n}": 100 + 2 * n for n in range(7)}
    assert len(results) == 7


def test_the_error_of_a_task_is_raised_and_the_workers_stop(tasks: Any) -> None:
    with pytest.raises(ValueError, match="13"):
        list(in_processes(tasks.double, {n: (n,) for n in (1, 13, 2)}, shared=0, workers=2))


def test_a_worker_that_ends_unexpectedly_is_reported_in_one_line(tasks: Any) -> None:
    with pytest.raises(InputError, match=r"a worker process ended unexpectedly.*use fewer workers"):
        list(in_processes(tasks.die, {0: (0,)}, shared=0, workers=2))


def test_a_script_without_a_main_guard_learns_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from medlt.evaluation.workers import in_processes\nlist(in_processes(max, {0: (1,)}, shared=0, workers=1))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert 'outside `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]
