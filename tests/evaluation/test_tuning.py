"""Share and weight are chosen by validation alone, among the pairs that an arm leaves open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlt.evaluation import tuning
from medlt.evaluation.arms import REAL, Arm, ExperimentRows
from medlt.evaluation.design import ArmSpec, build_arms
from medlt.evaluation.engine import TrainedArms, train_arms
from medlt.evaluation.sources import SourceImages
from medlt.evaluation.tuning import Tuned, tuned, variants
from medlt.store import Store
from medlt.training.runtime import Runtime

SHARED = {"steps": 2, "batch_size": 4, "evaluate_every": 1, "synthetic_fraction": 0.2}
CPU = Runtime("cpu", "fp32", 1, 0)
SPECS = {
    "open": ArmSpec("x"),
    "share": ArmSpec("x", synthetic_fraction=0.5),
    "weight": ArmSpec("x", synthetic_weight=0.7),
    "first": ArmSpec("x", training_strategy="pretrain"),
    "focal": ArmSpec(loss="focal"),
}


@pytest.fixture
def arms(rows: ExperimentRows, source: Callable[..., SourceImages]) -> dict[str, Arm]:
    made = build_arms(SPECS, rows, {"x": source()}, settings=SHARED, weight=0.3)
    return {arm.name: arm for arm in made}


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("open", [(0.1, 0.5), (0.1, 1.0), (0.4, 0.5), (0.4, 1.0)]),
        ("duplicated for open", [(0.1, 0.5), (0.1, 1.0), (0.4, 0.5), (0.4, 1.0)]),
        ("share", [(0.5, 0.5), (0.5, 1.0)]),
        ("weight", [(0.1, 0.7), (0.4, 0.7)]),
    ],
)
def test_every_pair_of_what_an_arm_leaves_open_is_tried(arms: dict[str, Arm], name: str, pairs: list[Any]) -> None:
    found = variants(arms[name], (0.1, 0.4), (0.5, 1.0))
    assert [(one.settings["synthetic_fraction"], one.about["synthetic_weight"]) for one in found] == pairs
    for one, (fraction, weight) in zip(found, pairs, strict=True):
        assert one.added is not None
        assert set(one.added.weights.tolist()) == {np.float32(weight)}
        assert one.about["synthetic_fraction"] == fraction
        assert (one.role, one.control) == (arms[name].role, arms[name].control)
    assert len({one.digest() for one in found}) == len(pairs)


@pytest.mark.parametrize("name", [REAL, "focal", "first"])
def test_arms_without_a_mixture_are_not_tuned(arms: dict[str, Arm], name: str) -> None:
    assert variants(arms[name], (0.1, 0.4), (0.5, 1.0)) == [arms[name]]


def planted(rows: ExperimentRows, better: str) -> Callable[..., TrainedArms]:
    """A training in which the variants with `better` in their name alone see the truth."""

    def train(rows: ExperimentRows, arms: Sequence[Arm], seeds: Sequence[int], **more: Any) -> TrainedArms:
        assert more["test"] is False
        draw = np.random.default_rng(0)
        truth = np.stack([rows.val.labels] * len(seeds))
        val = {arm.name: truth if better in arm.name else draw.random(truth.shape) for arm in arms}
        return TrainedArms(tuple(seeds), val, {})

    return train


@pytest.mark.parametrize(
    ("better", "pair"), [("share 0.4, weight 0.5", (0.4, 0.5)), ("share 0.1, weight 1", (0.1, 1.0))]
)
def test_the_best_pair_on_validation_is_kept(
    rows: ExperimentRows, arms: dict[str, Arm], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, better: str, pair: Any
) -> None:
    monkeypatch.setattr(tuning, "train_arms", planted(rows, better))
    wanted = [arms[REAL], arms["open"], arms["duplicated for open"]]
    found = tuned(rows, wanted, (0, 1), (0.1, 0.4), (0.5, 1.0), runtime=CPU, store=Store(tmp_path))
    assert [arm.name for arm in found.arms] == [arm.name for arm in wanted]
    assert found.arms[0] is arms[REAL]
    record = found.record()
    assert set(record) == {"open", "duplicated for open"}
    for one in record.values():
        assert (one["synthetic_fraction"], one["synthetic_weight"]) == pair
        assert len(one["tried"]) == 4
        assert max(row["val_tail_ap"] for row in one["tried"]) == 1.0


def test_one_pair_needs_no_training(rows: ExperimentRows, arms: dict[str, Arm], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wanted = list(arms.values())
    assert tuned(rows, wanted, (0,), (0.1,), (1.0,), runtime=CPU, store=store) == Tuned(tuple(wanted))
    assert not store.root.exists()


def test_the_chosen_arm_is_not_trained_again_and_no_test_row_is_read(
    rows: ExperimentRows, arms: dict[str, Arm], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    unread = replace(rows, test=replace(rows.test, images=rows.test.images * 0))
    wanted = [arms[REAL], arms["open"], arms["duplicated for open"]]
    found = tuned(unread, wanted, (0,), (0.1, 0.6), (1.0,), runtime=CPU, store=store)
    assert [arm.settings["synthetic_fraction"] for arm in found.arms[1:]] != []
    trained = train_arms(rows, found.arms, (0,), runtime=CPU, store=store)
    assert (trained.trained, trained.cached) == (1, 2)  # the real arm alone
    again = tuned(rows, wanted, (0,), (0.1, 0.6), (1.0,), runtime=CPU, store=store)
    assert again.record() == found.record()


def test_without_a_validation_positive_the_first_pair_is_kept(
    rows: ExperimentRows, arms: dict[str, Arm], tmp_path: Path
) -> None:
    rows.val.labels[:, 1] = 0
    found = tuned(rows, [arms["open"]], (0,), (0.1, 0.6), (1.0,), runtime=CPU, store=Store(tmp_path))
    assert found.arms[0].settings["synthetic_fraction"] == 0.1
    assert [row["val_tail_ap"] for row in found.tried["open"]] == [None, None]
