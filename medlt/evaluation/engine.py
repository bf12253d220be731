"""Every arm with every seed: trained or found trained, in this process or in several, and asked about held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medlt.classify.classifier import Pace
from medlt.classify.sets import TrainingSet, require_one_label
from medlt.classify.train import Settings, fit, require_trainable
from medlt.evaluation.arms import Arm, HeldOutRows
from medlt.evaluation.workers import in_processes
from medlt.store import Store
from medlt.training.runtime import Runtime, silent
from medlt.types import InputError


@dataclass(frozen=True)
class Said:
    """What one trained classifier says of validation and test rows, [V,K] and [N,K]; its pace if it was trained now."""

    val: np.ndarray
    test: np.ndarray
    pace: Pace | None


@dataclass(frozen=True)
class TrainedArms:
    """What all arms say: val[arm] [S,V,K], test[arm] [S,N,K], probabilities of S seeds; empty arms are not there.

    paces: of each training made now; cached: how many were found trained.
    """

    seeds: tuple[int, ...]
    val: dict[str, np.ndarray] = field(default_factory=dict)
    test: dict[str, np.ndarray] = field(default_factory=dict)
    paces: tuple[Pace, ...] = ()
    cached: int = 0

    @property
    def trained(self) -> int:
        """How many trainings were made now."""
        return len(self.paces)

    @property
    def pace(self) -> Pace | None:
        """The mean pace of the trainings made now; None without any."""
        if not self.paces:
            return None
        speed, busy = np.mean([(one.images_per_second, one.busy) for one in self.paces], axis=0)
        return Pace(float(speed), float(busy))


@dataclass(frozen=True)
class _Shared:
    """What every training needs, sent to a worker once."""

    train: TrainingSet
    val: TrainingSet
    test: TrainingSet
    runtime: Runtime
    store: Store


def trainable(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that are trained: those that are not empty, or none where nothing is left beside real rows."""
    full = [arm for arm in arms if not arm.empty]
    return full if any(arm.role != "real" for arm in full) else []


def train_arms(
    rows: HeldOutRows, arms: Sequence[Arm], seeds: Sequence[int], *, runtime: Runtime, store: Store, workers: int = 1
) -> TrainedArms:
    """Train every arm with every seed, or find it in the store, and ask it about validation and test rows.

    Seed s of one arm starts from the weights of seed s of another; `runtime.seed` has no part in it. Equal arms are
    trained once. With several workers each has one thread of torch, unless `runtime.threads` says otherwise. Progress
    is told as the stage "arms". Raises InputError, before any is trained, for an arm that cannot be.
    """
    wanted = trainable(arms)
    _check(rows, wanted)
    tasks = {(arm.name, seed): (arm, seed) for arm in wanted for seed in seeds}
    if len(tasks) < len(wanted) * len(seeds):
        raise InputError("two arms have one name, or a seed is given twice; give each a name and a seed of its own")
    alone = workers == 1 or len(tasks) < 2
    own = runtime if alone else replace(runtime, threads=runtime.threads or 1, progress=silent)
    shared = _Shared(rows.train, rows.val, rows.test, own, store)
    found: Iterable[tuple[tuple[str, int], Said]]
    if alone:
        found = ((key, _train(shared, *task)) for key, task in tasks.items())
    else:
        found = in_processes(_train, tasks, shared=shared, workers=min(workers, len(tasks)))
    said: dict[tuple[str, int], Said] = {}
    runtime.progress("arms", 0, len(tasks))
    for key, one in found:
        said[key] = one
        runtime.progress("arms", len(said), len(tasks))
    return _gathered(wanted, tuple(seeds), said)


def _check(rows: HeldOutRows, arms: Sequence[Arm]) -> None:
    """Raise InputError for an arm that cannot be trained or tested."""
    for arm in arms:
        settings = Settings(**arm.settings)
        try:
            require_trainable(rows.train, rows.val, arm.added, settings)
        except InputError as error:
            raise InputError(f"arms.{arm.name}: {error}") from None
        if settings.task == "single-label":
            require_one_label(rows.test, "test")


def _train(shared: _Shared, arm: Arm, seed: int) -> Said:
    """Train one arm with one seed, or find it trained."""
    runtime = replace(shared.runtime, seed=seed)
    with runtime.limited():
        found = fit(
            shared.train, shared.val, added=arm.added, runtime=runtime, store=shared.store,
            name=f"{arm.name}, seed {seed}", **arm.settings,
        )  # fmt: skip
        val, test = (found.predict(part.images).cpu().numpy() for part in (shared.val, shared.test))
    return Said(val, test, found.pace)


def _gathered(arms: Sequence[Arm], seeds: tuple[int, ...], said: dict[tuple[str, int], Said]) -> TrainedArms:
    """All that was said, an array an arm."""
    paces = tuple(one.pace for one in said.values() if one.pace is not None)
    val = {arm.name: np.stack([said[arm.name, seed].val for seed in seeds]) for arm in arms}
    test = {arm.name: np.stack([said[arm.name, seed].test for seed in seeds]) for arm in arms}
    return TrainedArms(seeds, val, test, paces, len(said) - len(paces))
