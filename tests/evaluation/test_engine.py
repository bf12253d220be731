"""Arms are trained in the same way in every process, once each, on the given device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medlt.classify.sets import TrainingSet
from medlt.engine import EngineChoice
from medlt.evaluation import engine
from medlt.evaluation.arms import REAL, Arm, ExperimentRows
from medlt.evaluation.design import ArmSpec, build_arms
from medlt.evaluation.engine import TrainedArms, train_arms
from medlt.evaluation.sources import SourceImages
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

SHARED = {"steps": 3, "batch_size": 4, "evaluate_every": 1, "synthetic_fraction": 0.3}
CPU = Runtime("cpu", "fp32", 1, 0)
SEEDS = (3, 4)


@pytest.fixture
def arms(rows: ExperimentRows, source: Callable[..., SourceImages]) -> list[Arm]:
    """real, fusion, its control, and focal."""
    specs = {"fusion": ArmSpec("x"), "focal": ArmSpec(loss="focal")}
    return build_arms(specs, rows, {"x": source()}, settings=SHARED, weight=0.3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def same(one: TrainedArms, other: TrainedArms) -> bool:
    """Whether both say the same of every row, bit for bit."""
    held = [(one.val, other.val), (one.test, other.test)]
    return all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in held)


def test_two_workers_predict_what_one_predicts(rows: ExperimentRows, arms: list[Arm], tmp_path: Path) -> None:
    one = train_arms(rows, arms, SEEDS, runtime=CPU, store=Store(tmp_path / "one"))
    two = train_arms(rows, arms, SEEDS, runtime=CPU, store=Store(tmp_path / "two"), workers=2)
    assert same(one, two)
    assert (one.trained, one.cached) == (two.trained, two.cached) == (8, 0)
    assert list(one.test) == [REAL, "fusion", "duplicated for fusion", "focal"]
    assert one.test["fusion"].shape == (2, 40, 2)
    assert one.val["fusion"].shape == (2, 30, 2)
    assert not np.array_equal(one.test[REAL][0], one.test[REAL][1])
    assert not np.array_equal(one.test["fusion"], one.test["duplicated for fusion"])


def test_what_was_trained_is_not_trained_again(rows: ExperimentRows, arms: list[Arm], store: Store) -> None:
    first = train_arms(rows, arms, SEEDS, runtime=CPU, store=store)
    again = train_arms(rows, arms, SEEDS, runtime=replace(CPU, seed=99), store=store)
    assert same(first, again)
    assert (again.trained, again.cached, again.pace) == (0, 8, None)
    assert first.pace is not None
    assert first.pace.images_per_second > 0
    plain = Arm("plain", "reweighted", SHARED | {"loss": "plain"}, control=REAL)
    more = train_arms(rows, [*arms, plain], SEEDS, runtime=CPU, store=store)
    assert (more.trained, more.cached) == (2, 8)


def test_equal_arms_of_other_names_are_trained_once(rows: ExperimentRows, arms: list[Arm], store: Store) -> None:
    twin = replace(arms[1], name="twin")
    found = train_arms(rows, [*arms[:3], twin], [0], runtime=CPU, store=store)
    assert (found.trained, found.cached) == (3, 1)
    np.testing.assert_array_equal(found.test["fusion"], found.test["twin"])


def test_other_pixels_are_another_arm(rows: ExperimentRows, arms: list[Arm], store: Store) -> None:
    train_arms(rows, arms[:3], [0], runtime=CPU, store=store)
    pixels = rows.train.images.clone()
    pixels[0, 0, 0, 0] += 1
    train = TrainingSet(pixels, rows.train.labels, rows.train.weights, rows.train.uids)
    assert train_arms(replace(rows, train=train), arms[:3], [0], runtime=CPU, store=store).cached == 0


@dataclass(frozen=True)
class Recording(Runtime):
    """Says of everything that runs what for and on which device, and lets it run on the CPU."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    def torch_device(self, purpose: str) -> torch.device:
        self.asked.append((self.device, purpose))
        return torch.device("cpu")


def test_the_device_reaches_every_arm_and_seed(rows: ExperimentRows, arms: list[Arm], store: Store) -> None:
    runtime = Recording("cuda:7", "fp32", 1, 0)
    train_arms(rows, arms, SEEDS, runtime=runtime, store=store)
    assert {device for device, _ in runtime.asked} == {"cuda:7"}
    assert {purpose for _, purpose in runtime.asked} == {f"{arm.name}, seed {seed}" for arm in arms for seed in SEEDS}


@pytest.mark.parametrize(("asked", "given"), [(None, 1), (3, 3)])
def test_workers_get_device_precision_and_threads(
    rows: ExperimentRows, arms: list[Arm], store: Store, monkeypatch: pytest.MonkeyPatch, asked: int | None, given: int
) -> None:
    seen: list[Runtime] = []

    def here(
        chosen: EngineChoice, make: Callable[..., Callable[[Any], Any]], args: Any, tasks: Any, lost: Any, *, ahead: int
    ) -> Iterator[tuple[Any, Any]]:
        assert (chosen, ahead) == (EngineChoice("local", 2), 1)
        seen.append(args[0].runtime)
        function = make(*args)
        for task in tasks:
            yield task, function(task)

    monkeypatch.setattr(engine, "run_tasks", here)
    runtime = Recording("cuda:7", "bf16", asked, 0, progress=lambda *_: None)
    train_arms(rows, arms, [0], runtime=runtime, store=store, workers=2)
    assert [(one.device, one.precision, one.threads) for one in seen] == [("cuda:7", "bf16", given)]
    assert {device for device, _ in runtime.asked} == {"cuda:7"}


def test_progress_is_reported(rows: ExperimentRows, arms: list[Arm], store: Store) -> None:
    reports: list[tuple[str, int, int]] = []
    runtime = replace(CPU, progress=lambda stage, done, total: reports.append((stage, done, total)))
    train_arms(rows, arms[:3], [0], runtime=runtime, store=store)
    assert [line for line in reports if line[0] == "arms"] == [("arms", n, 3) for n in range(4)]
    assert ("fusion, seed 0", 3, 3) in reports


def test_nothing_is_trained_where_nothing_is_compared(rows: ExperimentRows, arms: list[Arm], store: Store) -> None:
    empty = [replace(arm, added=None) if arm.role in ("control", "synthetic") else arm for arm in arms[:3]]
    found = train_arms(rows, empty, SEEDS, runtime=CPU, store=store, workers=2)
    assert (found.test, found.trained, found.cached) == ({}, 0, 0)
    assert not store.root.exists()


def test_an_arm_that_cannot_be_trained_is_named_before_any_is(
    rows: ExperimentRows, arms: list[Arm], store: Store
) -> None:
    wrong = Arm("later", "reweighted", SHARED | {"training_strategy": "pretrain"}, control=REAL)
    with pytest.raises(InputError, match=r"^arms\.later: .*needs added rows"):
        train_arms(rows, [*arms, wrong], [0], runtime=CPU, store=store)
    with pytest.raises(InputError, match="two arms have the same name"):
        train_arms(rows, [*arms, arms[1]], [0], runtime=CPU, store=store)
    assert not store.root.exists()


def test_threads_are_given_back(rows: ExperimentRows, arms: list[Arm], store: Store) -> None:
    before = torch.get_num_threads()
    train_arms(rows, arms[:3], [0], runtime=replace(CPU, threads=before + 1), store=store)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
def test_no_arm_is_trained_on_when_the_parent_was_killed(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("w") as log:
        script = str(Path(__file__).with_name("arm_tasks.py"))
        parent = subprocess.Popen([sys.executable, script, str(tmp_path / "store")], stdout=log, stderr=log)
    children: list[int] = []
    try:
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("store/classifier/*.work"))) < 2:  # both train
            assert parent.poll() is None, (tmp_path / "log.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
        children = [pid for pid in _processes() if _parent(pid) == parent.pid]
        assert len(children) >= 2
        parent.kill()
        parent.wait()
        end = time.monotonic() + 10
        while any(_parent(pid) is not None for pid in children) and time.monotonic() < end:
            time.sleep(0.05)
        assert [pid for pid in children if _parent(pid) is not None] == []
    finally:
        for pid in [parent.pid, *children]:
            if _parent(pid) is not None:
                os.kill(pid, signal.SIGKILL)
        parent.wait()


def _processes() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]


def _parent(pid: int) -> int | None:
    """The parent of a process that runs; None of one that does not."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)
