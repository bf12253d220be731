"""A worker that hangs or dies costs the task at hand, and nothing else: nothing is lost, nothing is done twice."""

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlt.engine import Pool, worker_environment
from medlt.engine.pool import AHEAD

Run = Callable[..., Any]
Task = tuple[str, int]
FATE = {"exit": "crashed", "segv": "crashed", "kill": "crashed", "half": "crashed", "hang": "timeout"}


@pytest.fixture(scope="module")
def tasks() -> Iterator[Any]:
    """The module of tasks, on the path that spawned processes inherit."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield importlib.import_module("pool_tasks")
    sys.path.remove(str(Path(__file__).parent))


def answered(tasks: Any, given: list[Task], workers: int, timeout_s: float = 4.0, pause: float = 0.0) -> list[Any]:
    with Pool(tasks.make, (), tasks.lost, workers=workers, timeout_s=timeout_s) as pool:
        results = []
        for task, answer in pool.run(iter(given)):
            results.append((task, answer))
            time.sleep(pause if len(results) <= 2 else 0)
        return results


def right(given: list[Task]) -> list[tuple[Task, Any]]:
    return sorted((task, FATE.get(task[0], task[1] ** 2)) for task in given)


@pytest.mark.parametrize(("count", "workers"), [(0, 1), (1, 2), (AHEAD, 1), (3 * AHEAD + 1, 3)])
def test_every_task_is_answered_once(tasks: Any, count: int, workers: int) -> None:
    given = [("ok", i) for i in range(count)]
    assert sorted(answered(tasks, given, workers, timeout_s=60.0)) == right(given)


@pytest.mark.parametrize("kind", FATE)
@pytest.mark.parametrize(
    "place", [AHEAD, pytest.param(0, marks=pytest.mark.slow), pytest.param(2 * AHEAD, marks=pytest.mark.slow)]
)
def test_a_task_that_ends_its_worker_costs_itself_only(tasks: Any, kind: str, place: int) -> None:
    given = [("ok", i) for i in range(2 * AHEAD + 1)]
    given[place] = (kind, place)
    assert sorted(answered(tasks, given, 1, timeout_s=4.0 if kind == "hang" else 60.0), key=str) == sorted(
        right(given), key=str
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_arrangement_of_good_and_bad_tasks(tasks: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["ok", "slow", "exit", "segv", "kill", "half", "hang"], size=40, p=[0.6, 0.2] + [0.04] * 5)
    given = [(str(kind), i) for i, kind in enumerate(kinds)]
    results = answered(tasks, given, int(rng.integers(1, 4)))
    assert sorted(results, key=str) == sorted(right(given), key=str)


@pytest.mark.slow
def test_two_deaths_in_a_row_and_the_last_task(tasks: Any) -> None:
    given = [("exit", 0), ("exit", 1), ("ok", 2), ("exit", 3)]
    assert sorted(answered(tasks, given, 1), key=str) == sorted(right(given), key=str)


@pytest.mark.slow
def test_a_large_answer_passes_whole(tasks: Any) -> None:
    given = [("big", i) for i in range(2 * AHEAD)]
    assert sorted(answered(tasks, given, 2)) == [(task, bytes(2_000_000)) for task in sorted(given)]


def test_a_slow_reader_is_no_reason_to_give_up_on_workers(tasks: Any) -> None:
    """The time limit is for a task, not for the run that waits to hear of it."""
    given = [("ok", i) for i in range(2 * AHEAD)]
    assert sorted(answered(tasks, given, 2, timeout_s=3.0, pause=3.3)) == right(given)


@pytest.mark.slow
def test_the_time_limit_is_for_one_task(tasks: Any) -> None:
    given = [("slow", i) for i in range(12)]
    assert sorted(answered(tasks, given, 1, timeout_s=2.0)) == right(given)


@pytest.mark.slow
def test_a_hanging_worker_does_not_hold_up_the_others(tasks: Any) -> None:
    given = [("hang", 0), *(("ok", i) for i in range(1, 60))]
    results = answered(tasks, given, 2)
    assert sorted(results, key=str) == sorted(right(given), key=str)
    assert [task for task, _ in results].index(("hang", 0)) > 40


def test_an_exception_stops_the_run_and_its_workers(tasks: Any) -> None:
    seen: list[Task] = []
    pool = Pool(tasks.make, (), tasks.lost, workers=2, timeout_s=60)
    workers = [worker.process.pid for worker in pool._workers]
    many = 100_000  # more than the other worker can answer while the first comes to its second task
    given = chain([("ok", 0), ("stop", 1)], (("ok", i) for i in range(2, many)))
    with pool, pytest.raises(OSError, match="No space left"):
        seen.extend(task for task, _ in pool.run(given))
    assert len(seen) < 0.9 * many
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)


def test_a_worker_that_cannot_be_built_is_an_error_not_a_wait(tasks: Any) -> None:
    with pytest.raises(ValueError, match="cannot be built"):
        Pool(tasks.broken, (), tasks.lost, workers=1, timeout_s=5)


def test_an_exception_that_cannot_be_sent_keeps_its_text(tasks: Any) -> None:
    with pytest.raises(RuntimeError, match="OddError: one and two"):
        answered(tasks, [("odd", 0)], 1, timeout_s=60.0)


def test_a_worker_holds_no_more_tasks_than_it_should(tasks: Any) -> None:
    taken: list[int] = []

    def given() -> Iterator[Task]:
        for i in range(12):
            taken.append(i)
            yield ("ok", i)

    with Pool(tasks.make, (), tasks.lost, workers=2, ahead=1) as pool:
        for done, _ in enumerate(pool.run(given()), start=1):
            assert len(taken) - done <= 2


def test_each_worker_has_its_own_environment(tasks: Any) -> None:
    own = [{"CUDA_VISIBLE_DEVICES": name} for name in ("2", "5")]
    with Pool(tasks.make, (), tasks.lost, workers=4, ahead=1, environments=own) as pool:
        results = [result for _, result in pool.run([("device", i) for i in range(20)])]
    assert {device for device, _ in results} == {"2", "5"}
    assert len({device for _, device in {pid: device for device, pid in results}.items()}) == 2


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with worker_environment():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_a_file_beyond_the_memory_cap_is_told_as_such(film: Run, run: Run, tmp_path: Path) -> None:
    """16000 x 16000 x 16 bits in an RLE stream of 8 MB: 512 MB decoded, twice that to show."""
    import struct

    from pydicom import uid

    plane = b"\x81\x00" * (16000 * 16000 // 128)
    head = struct.pack("<16I", 2, 64, 64 + len(plane), *[0] * 13)
    big = film(syntax=uid.RLELossless, Rows=16000, Columns=16000, PixelData=[head + plane * 2])
    (tmp_path / "in").mkdir()
    (tmp_path / "in/big").write_bytes(big)
    (tmp_path / "in/good").write_bytes(film())
    result = run(tmp_path / "in", tmp_path / "out", memory_mb=1024)
    assert sorted(result.rows) == ["good"]
    assert result.reasons == {"big": "out_of_memory"}
