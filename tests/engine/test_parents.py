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

from medlt.engine import EngineChoice
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tasks: Any, tmp_path: Path, number: signal.Signals) -> None:
    with (tmp_path / "log.txt").open("w") as log:
        command = [sys.executable, tasks.__file__, str(tmp_path)]
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


def test_a_script_without_a_main_guard_learns_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from medlt.engine import EngineChoice, run_tasks\nlist(run_tasks(EngineChoice(), max, (1, 2), [1], max))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert 'below `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert EngineChoice(workers=2).environments() == [{}]
    named = [one["CUDA_VISIBLE_DEVICES"] for one in EngineChoice(workers=3, gpus=2).environments()]
    assert named == ["0", "1"]
    with pytest.raises(InputError, match="gpus: 3 requested, but this machine has 2; lower gpus"):
        EngineChoice(workers=3, gpus=3).environments()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7,5")
    named = [one["CUDA_VISIBLE_DEVICES"] for one in EngineChoice(workers=2, gpus=2).environments()]
    assert named == ["3", "GPU-7"]
    with pytest.raises(InputError, match="gpus: 4 requested, but CUDA_VISIBLE_DEVICES has 3"):
        EngineChoice(workers=4, gpus=4).environments()
