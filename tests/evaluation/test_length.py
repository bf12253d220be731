"""The plateau of curves with a known best step, and what a training that still improves is called."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from medlt.evaluation.arms import ExperimentRows
from medlt.evaluation.length import Curve, TrainingLength, best_step, curve_of, of_length, pilot, plateau
from medlt.store import Store
from medlt.training.runtime import Runtime

NAN = math.nan
CPU = Runtime("cpu", "fp32", 1, 0)


def curve(*values: float) -> Curve:
    return tuple((10 * (n + 1), value) for n, value in enumerate(values))


@pytest.mark.parametrize(
    ("values", "step"),
    [((0.1, 0.3, 0.2), 20), ((0.1, 0.3, 0.3), 20), ((0.1, 0.2, 0.3), 30), ((NAN, 0.2, NAN), 20), ((NAN, NAN), None)],
)
def test_the_best_step_is_the_first_of_the_highest(values: tuple[float, ...], step: int | None) -> None:
    assert best_step(curve(*values)) == step


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ((0.1, 0.3, 0.2), 20),
        ((0.30, 0.305, 0.309), 10),  # level: later steps gain less than 0.01
        ((0.30, 0.305, 0.32), 30),
        ((0.30, 0.32, 0.29, 0.325), 20),  # noise after the plateau
        ((0.1, 0.105, 0.11, 0.115, 0.12), 30),  # a slow rise is level where what is left of it is small
        ((NAN, 0.2, NAN), 20),
        ((NAN, NAN), None),
    ],
)
def test_a_plateau_is_the_first_step_that_no_later_one_beats_clearly(
    values: tuple[float, ...], step: int | None
) -> None:
    assert plateau(curve(*values)) == step


def test_a_missing_value_of_a_record_is_nan() -> None:
    history: list[dict[str, Any]] = [{"step": 10, "val_macro_ap": None}, {"step": 20, "val_macro_ap": 0.5}]
    (first, gap), second = curve_of(history)
    assert (first, second) == (10, (20, 0.5))
    assert math.isnan(gap)


EVEN = curve(0.3, 0.301, 0.305)
RISING, LEVEL, EMPTY = curve(0.1, 0.2, 0.3), curve(0.1, 0.3, 0.2), curve(NAN, NAN, NAN)


@pytest.mark.parametrize(
    ("chosen_by", "curves", "says"),
    [
        ("plateau", (LEVEL,), ""),
        ("plateau", (RISING,), "set evaluation.max_steps to 60"),
        ("plateau", (EMPTY,), "no validation image has a positive"),
        ("config", (RISING, RISING), r"in 2 of 2 seeds.*set evaluation.steps to plateau or to 60"),
        ("plateau", (EVEN,), ""),  # its best step is the last, by less than 0.01
        ("config", (EVEN, EVEN), ""),
        ("config", (RISING, LEVEL), ""),  # half of the seeds is not most of them
        ("config", (RISING, RISING, LEVEL), "in 2 of 3 seeds"),
        ("config", (RISING, LEVEL, EMPTY), "no validation image"),
        ("config", (), ""),
    ],
)
def test_a_training_is_too_brief_if_most_seeds_are_best_at_the_last_step(
    chosen_by: str, curves: tuple[Curve, ...], says: str
) -> None:
    problem = TrainingLength(30, 30, chosen_by, curves).problem  # type: ignore[arg-type]
    assert bool(problem) == bool(says)
    if says:
        assert re.search(says, problem)


def test_a_plateau_in_the_last_quarter_is_a_rise() -> None:
    flat = [0.1, 0.5, 0.5, 0.5]
    assert TrainingLength(20, 40, "plateau", (curve(*flat),)).problem == ""
    late = TrainingLength(40, 40, "plateau", (curve(0.1, 0.2, 0.3, 0.5),)).problem
    assert "rose by more than 0.01 in the last quarter of the 40 steps allowed" in late
    assert TrainingLength(30, 40, "plateau", (curve(0.1, 0.2, 0.5, 0.5),)).problem == ""  # three quarters


def test_the_curves_of_the_arms_judge_a_given_number_only() -> None:
    pilot_curve, own = (LEVEL,), (RISING, RISING)
    assert TrainingLength(20, 30, "plateau", pilot_curve).with_curves(own).curves == pilot_curve
    assert TrainingLength(30, 30, "config").with_curves(own).best == (30, 30)


def test_after_a_pilot_no_arm_stops_early() -> None:
    settings = {"steps": 5, "evaluate_every": 50, "patience": 1, "loss": "plain"}
    own = of_length(settings, TrainingLength(120, 200, "plateau"))
    assert own == {"steps": 120, "evaluate_every": 50, "patience": 4, "loss": "plain"}
    assert own["patience"] * own["evaluate_every"] > 120
    assert of_length(settings, TrainingLength(7, 7, "config")) == settings | {"steps": 7}


def test_a_pilot_measures_32_times_at_a_constant_rate_and_gives_its_best_step(
    rows: ExperimentRows, tmp_path: Path
) -> None:
    shared = {"batch_size": 4, "learning_rate": 1e-3, "training_strategy": "drw", "synthetic_fraction": 0.2}
    found = pilot(rows, shared, 64, runtime=CPU, store=Store(tmp_path))
    (own,) = found.curves
    assert [step for step, _ in own] == list(range(2, 2 * len(own) + 1, 2))
    assert found.steps == plateau(own)
    assert (found.limit, found.chosen_by) == (64, "plateau")
    assert len(own) == 32 or own[-1][0] == (best_step(own) or 0) + 2 * 8  # it stops after 8 without a better one
    told = {"steps": found.steps, "limit": 64, "chosen_by": "plateau"}
    assert found.record() == told | {"best_steps": [best_step(own)], "plateaus": [found.steps]}
