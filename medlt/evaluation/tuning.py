"""Choose the share and the loss weight of added rows on validation, for every arm with added rows and for its control.

Each arm is trained with every pair of a few values and all seeds; the pair with the best mean tail macro AP on the
validation rows is kept. The control gets the same choice as the arm that it is compared with, so neither is compared at
a setting that suits the other. No test row is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from medlt.evaluation.arms import Arm, ArmScores, ExperimentRows
from medlt.evaluation.engine import train_arms
from medlt.store import Store
from medlt.training.runtime import Runtime

FRACTION, WEIGHT = "synthetic_fraction", "synthetic_weight"


@dataclass(frozen=True)
class Tuned:
    """Arms with their chosen share and weight; tried: arm -> a row a pair, with its validation tail macro AP."""

    arms: tuple[Arm, ...]
    tried: Mapping[str, Sequence[Mapping[str, float | None]]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the entry of verdict.json: for each tuned arm its share, its weight, and what was tried."""
        chosen = {arm.name: arm.about for arm in self.arms}
        return {
            name: {FRACTION: float(chosen[name][FRACTION]), WEIGHT: float(chosen[name][WEIGHT]), "tried": list(rows)}
            for name, rows in self.tried.items()
        }


def variants(arm: Arm, fractions: Sequence[float], weights: Sequence[float]) -> list[Arm]:
    """Return the arm with every pair of a share and a weight, of those that the arm leaves open."""
    if arm.added is None or not arm.free:
        return [arm]
    shares = fractions if FRACTION in arm.free else [float(arm.settings[FRACTION])]
    losses = weights if WEIGHT in arm.free else [float(arm.about[WEIGHT])]
    return [_variant(arm, *pair) for pair in product(shares, losses)]


def _variant(arm: Arm, fraction: float, weight: float) -> Arm:
    assert arm.added is not None
    added = replace(arm.added, weights=np.full(len(arm.added), weight, np.float32))
    name = f"{arm.name}, share {fraction:g}, weight {weight:g}"
    settings = {**arm.settings, FRACTION: fraction}
    return replace(
        arm, name=name, settings=settings, added=added, about={**arm.about, FRACTION: fraction, WEIGHT: weight}
    )


def tuned(
    rows: ExperimentRows,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    fractions: Sequence[float],
    weights: Sequence[float],
    *,
    runtime: Runtime,
    store: Store,
    workers: int = 1,
) -> Tuned:
    """Return the arms with the share and weight that validation chose; the first pair of equal ones.

    fractions, weights: a few values of each. Arms that leave neither open, and empty arms, do not change.
    """
    offered = {arm.name: variants(arm, fractions, weights) for arm in arms}
    offered = {name: several for name, several in offered.items() if len(several) > 1}
    every = [one for several in offered.values() for one in several]
    if not every:
        return Tuned(tuple(arms))
    trained = train_arms(rows, every, seeds, runtime=runtime, store=store, workers=workers, test=False)
    seen = ArmScores({}, rows.val.labels, (), rows.findings, trained.val, rows.val.labels)
    values = {one.name: float(seen.validation_ap(one.name, rows.tail).mean()) for one in every}
    best = {name: max(several, key=lambda one: _ranked(values[one.name])) for name, several in offered.items()}
    chosen = tuple(replace(best[arm.name], name=arm.name) if arm.name in best else arm for arm in arms)
    return Tuned(chosen, {name: [_row(one, values[one.name]) for one in several] for name, several in offered.items()})


def _ranked(value: float) -> float:
    return -np.inf if np.isnan(value) else value


def _row(one: Arm, value: float) -> dict[str, float | None]:
    own = {FRACTION: float(one.about[FRACTION]), WEIGHT: float(one.about[WEIGHT])}
    return own | {"val_tail_ap": None if np.isnan(value) else value}
