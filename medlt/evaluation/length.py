"""How many steps every arm of a comparison makes: a given number, or the plateau of the real arm on validation.

A pilot trains the real arm alone at a constant learning rate, because a rate that falls to 0 makes every curve level
off. Its plateau is the first step that no later one beats by more than `GAIN`: on a level, noisy curve the best step is
anywhere, also at the end. The plateau is the number of steps of all arms, each with its own warm-up and cosine. If it
lies in the last quarter of the steps allowed, the arm was still improving, and what a comparison shows depends on when
it stopped. A given number of steps is too small if, beside that, the best step is the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from medlt.classify.train import fit_classifier
from medlt.evaluation.arms import ExperimentRows
from medlt.store import Store
from medlt.training.runtime import Runtime

Curve: TypeAlias = tuple[tuple[int, float], ...]
"""(step, validation macro AP) of one training, by rising step; NaN without a validation positive."""

MEASURED = 32
"""Measurements of a pilot that makes all allowed steps."""
PATIENCE = 8
"""Measurements without a better one after which a pilot stops, a quarter of all."""
GAIN = 0.01
"""Macro AP up to which a later step counts as equal."""
LATE = 0.75
"""Share of the allowed steps after which a plateau may be a rise that goes on."""


def curve_of(history: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the curve of a classifier's `record["history"]`."""
    pairs = ((int(one["step"]), one["val_macro_ap"]) for one in history)
    return tuple((step, math.nan if value is None else float(value)) for step, value in pairs)


def best_step(curve: Curve) -> int | None:
    """Return the step of the highest value, the earliest of equal ones; None if no step has a value."""
    known = [(step, value) for step, value in curve if not math.isnan(value)]
    return max(known, key=lambda pair: (pair[1], -pair[0]))[0] if known else None


def plateau(curve: Curve) -> int | None:
    """Return the first step that no later step beats by more than `GAIN`; None if no step has a value."""
    highest, first = -math.inf, None
    for step, value in reversed(curve):
        if math.isnan(value):
            continue
        highest = max(highest, value)
        if value >= highest - GAIN:
            first = step
    return first


@dataclass(frozen=True)
class TrainingLength:
    """The steps of every arm.

    chosen_by: "plateau" or "config"; limit: steps that were allowed, equal to `steps` for a given number; curves: of
    the pilot, or of the trainings of the real arm with each seed.
    """

    steps: int
    limit: int
    chosen_by: Literal["plateau", "config"]
    curves: tuple[Curve, ...] = ()

    def with_curves(self, curves: Sequence[Curve]) -> TrainingLength:
        """Return the same length with the curves of the real arm, unless a pilot chose it."""
        return self if self.chosen_by == "plateau" else replace(self, curves=tuple(curves))

    @property
    def best(self) -> tuple[int | None, ...]:
        """Return the best step of each curve."""
        return tuple(best_step(curve) for curve in self.curves)

    @property
    def plateaus(self) -> tuple[int | None, ...]:
        """Return the plateau of each curve."""
        return tuple(plateau(curve) for curve in self.curves)

    @property
    def problem(self) -> str:
        """Return why the arms were trained too briefly to be compared, and what to type; "" if they were not."""
        if not self.curves:
            return ""
        if None in self.best:
            return "no validation image has a positive, so nothing shows when training is long enough; add some"
        rising = [step is not None and step > LATE * self.limit for step in self.plateaus]
        rose = f"rose by more than {GAIN:g} in the last quarter of the {self.limit} steps"
        if self.chosen_by == "plateau":
            more = f"validation macro AP of the real arm {rose} allowed; set evaluation.max_steps to {2 * self.limit}"
            return more if any(rising) else ""
        last = sum(late and step == self.limit for late, step in zip(rising, self.best, strict=True))
        if 2 * last <= len(self.best):
            return ""
        seeds = f" in {last} of {len(self.best)} seeds" if len(self.best) > 1 else ""
        where = f"the best validation step of the real arm is the last one{seeds}, and macro AP {rose}"
        return f"{where}; set evaluation.steps to plateau or to {2 * self.limit}"

    def record(self) -> dict[str, Any]:
        """Return the entry of verdict.json."""
        return {
            "steps": self.steps, "limit": self.limit, "chosen_by": self.chosen_by, "best_steps": list(self.best),
            "plateaus": list(self.plateaus),
        }  # fmt: skip


def pilot(
    rows: ExperimentRows, settings: Mapping[str, Any], max_steps: int, *, runtime: Runtime, store: Store
) -> TrainingLength:
    """Train the real arm alone, up to `max_steps`, and return its plateau as the length of every arm.

    settings: those of `medlt.classify.train.fit_classifier` that all arms share; the seed is the runtime's. Without a
    validation positive the length is `max_steps`.
    """
    every = -(-max_steps // MEASURED)
    own: dict[str, Any] = {
        "steps": max_steps,
        "lr_scheduler": "constant",
        "evaluate_every": every,
        "patience": PATIENCE,
    }
    own |= {"training_strategy": "one", "tau_norm": False}
    classifier = fit_classifier(rows.train, rows.val, runtime=runtime, store=store, name="pilot", **{**settings, **own})
    curve = curve_of(classifier.record["history"])
    return TrainingLength(plateau(curve) or max_steps, max_steps, "plateau", (curve,))


def of_length(settings: Mapping[str, Any], length: TrainingLength) -> dict[str, Any]:
    """Return the settings of `fit_classifier` for arms of this length.

    After a pilot no arm stops early: all make the same number of steps, and each keeps its best weights on validation.
    """
    if length.chosen_by == "config":
        return {**settings, "steps": length.steps}
    every = min(int(settings.get("evaluate_every", 50)), length.steps)
    return {**settings, "steps": length.steps, "evaluate_every": every, "patience": -(-length.steps // every) + 1}
