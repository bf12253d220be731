"""Tasks on Ray have the results of the local pool, whatever their number of workers and whoever dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from medlt.engine import EngineChoice, run_tasks
from medlt.engine.on_ray import HELD
from medlt.types import InputError

Task = tuple[str, int]
here = pytest.mark.ray
pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of parts of itself
FATE = {"segv": "crashed", "hang": "timeout"}


@pytest.fixture(scope="module")
def cluster(tasks: Any) -> Iterator[Any]:
    """A Ray of this machine for all tests, which the engine uses since it is there."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    yield ray
    ray.shutdown()


def answers(tasks: Any, given: list[Task], workers: int, **settings: Any) -> list[tuple[Task, Any]]:
    choice = EngineChoice("ray", workers)
    return list(run_tasks(choice, tasks.make, (), iter(given), tasks.lost, **settings))


@here
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_are_those_of_the_local_engine(tasks: Any, cluster: Any, workers: int) -> None:
    given = [("ok", i) for i in range(50)]
    local = list(run_tasks(EngineChoice("local", 2), tasks.make, (), given, tasks.lost))
    on_ray = answers(tasks, given, workers, ahead=3)
    assert sorted(on_ray) == sorted(local) == [(task, task[1] ** 2) for task in given]


@here
def test_no_task_is_no_work(tasks: Any) -> None:
    assert answers(tasks, [], 2) == []


@here
def test_a_task_that_kills_or_blocks_its_process_costs_itself_only(tasks: Any, cluster: Any) -> None:
    given = [("ok", 0), ("segv", 1), ("ok", 2), ("hang", 3), ("ok", 4)]
    results = dict(answers(tasks, given, 2, ahead=5, timeout_s=5.0))
    assert results == {task: FATE.get(task[0], task[1] ** 2) for task in given}


@here
def test_a_task_that_kills_its_actor_costs_itself_only(tasks: Any, cluster: Any) -> None:
    given = [("ok", 0), ("segv", 1), ("exit", 2), ("kill", 3), ("ok", 4)]
    results = dict(answers(tasks, given, 1, ahead=5))
    assert results == {task: task[1] ** 2 if task[0] == "ok" else "crashed" for task in given}


@here
def test_what_cannot_be_built_is_its_own_exception(tasks: Any, cluster: Any) -> None:
    with pytest.raises(ValueError, match="cannot be built"):
        list(run_tasks(EngineChoice("ray", 2), tasks.broken, (), [("ok", 0)], tasks.lost))
    with pytest.raises(InputError, match="a worker process ended while it started"):
        list(run_tasks(EngineChoice("ray", 2), tasks.deadly, (), [("ok", 0)], tasks.lost))
    with pytest.raises(RuntimeError, match="OddError: one and two"):
        answers(tasks, [("odd", 0)], 1)


@here
def test_actors_that_end_again_and_again_end_the_run(tasks: Any, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medlt.engine.on_ray.DEATHS", 3)
    with pytest.raises(InputError, match=r"ray: 3 workers in a row ended before they answered.*use fewer"):
        answers(tasks, [("outer", 0)], 1)


@here
def test_an_exception_ends_the_run(tasks: Any, cluster: Any) -> None:
    with pytest.raises(OSError, match="No space left"):
        answers(tasks, [("ok", 0), ("stop", 1), ("ok", 2)], 1)


@here
def test_tasks_of_a_killed_actor_are_done_again(tasks: Any, cluster: Any) -> None:
    given = [("actor", i) for i in range(30)]
    done: list[Task] = []
    killed = 0
    for task, (_, actor) in run_tasks(EngineChoice("ray", 2), tasks.make, (), given, tasks.lost, ahead=1):
        done.append(task)
        if len(done) == 4:
            os.kill(actor, signal.SIGKILL)
            killed = actor
    assert killed
    assert sorted(done) == sorted(given)  # nothing is lost, nothing is there twice


@here
def test_an_actor_is_never_given_more_than_a_few_batches(tasks: Any, cluster: Any) -> None:
    drawn, open_at_most, ended = 0, 0, 0

    def given() -> Iterator[Task]:
        nonlocal drawn, open_at_most
        for i in range(60):
            drawn += 1
            open_at_most = max(open_at_most, drawn - ended)
            yield ("ok", i)

    for _ in run_tasks(EngineChoice("ray", 2), tasks.make, (), given(), tasks.lost, ahead=3):
        ended += 1
    assert ended == 60
    assert 2 * 3 < open_at_most <= 2 * 3 * HELD + 3  # and one batch whose answers are handed out
    assert HELD <= 4


def test_without_ray_it_is_one_line(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"engine: ray is not installed; pip install \"medlt\[ray\]\""):
        answers(tasks, [("ok", 0)], 1)
