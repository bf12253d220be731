"""Train every arm with every seed, in one process or in several, and predict the held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from medlt.classify.classifier import Pace
from medlt.classify.frozen import predict_rows
from medlt.classify.sets import TrainingSet, require_one_label
from medlt.classify.train import ClassifierSettings, fit_classifier, require_trainable
from medlt.engine import EngineChoice, run_tasks
from medlt.evaluation.arms import Arm, ExperimentRows
from medlt.evaluation.fingerprint import CodedImages
from medlt.evaluation.length import Curve, curve_of
from medlt.store import Store
from medlt.training.runtime import Runtime, silent
from medlt.types import InputError


@dataclass(frozen=True)
class Predictions:
    """Probabilities of one classifier on validation and test rows, [V,K] and [N,K], and on coded images if
    there are any; its validation curve; its pace if it was trained now.
    """

    val: np.ndarray
    test: np.ndarray
    coded: np.ndarray | None
    curve: Curve
    pace: Pace | None


@dataclass(frozen=True)
class TrainedArms:
    """Probabilities of all arms with S seeds: val[arm] [S,V,K], test[arm] [S,N,K]. Empty arms are absent.

    coded: of the images of `medlt.evaluation.fingerprint`, [S,C,K], for arms with a codec; curves: of each arm, one a
    seed; paces: of each training of this call; cached: number of classifiers loaded from the store.
    """

    seeds: tuple[int, ...]
    val: dict[str, np.ndarray] = field(default_factory=dict)
    test: dict[str, np.ndarray] = field(default_factory=dict)
    coded: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, tuple[Curve, ...]] = field(default_factory=dict)
    paces: tuple[Pace, ...] = ()
    cached: int = 0

    @property
    def trained(self) -> int:
        """Return the number of trainings of this call."""
        return len(self.paces)

    @property
    def pace(self) -> Pace | None:
        """Return the mean pace of the trainings of this call; None without any."""
        if not self.paces:
            return None
        speed, busy = np.mean([(one.images_per_second, one.busy) for one in self.paces], axis=0)
        return Pace(float(speed), float(busy))


@dataclass(frozen=True)
class _Shared:
    """Data that every training needs; each worker receives it once."""

    train: TrainingSet
    val: TrainingSet
    test: TrainingSet
    coded: CodedImages
    runtime: Runtime
    store: Store


def trainable_arms(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that are not empty; none if only arms of real rows are left."""
    full = [arm for arm in arms if not arm.empty]
    return full if any(arm.role != "real" for arm in full) else []


def train_arms(
    rows: ExperimentRows,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    runtime: Runtime,
    store: Store,
    workers: int = 1,
    coded: CodedImages | None = None,
    test: bool = True,
) -> TrainedArms:
    """Train every arm with every seed, or load it from the store, and predict validation and test rows.

    Arms with the same seed start from the same weights; `runtime.seed` is not used. Equal arms are trained once. Each
    of several workers uses `runtime.threads` threads of torch, 1 by default. coded: images to predict as well; test:
    False predicts no test row. Progress is reported as the stage "arms".
    Raises InputError, before any training, for an arm that cannot be trained.
    """
    wanted = trainable_arms(arms)
    _check(rows, wanted)
    tasks = {(arm.name, seed): (arm, seed) for arm in wanted for seed in seeds}
    if len(tasks) < len(wanted) * len(seeds):
        raise InputError(
            "two arms have the same name, or a seed occurs twice; give each arm its own name and list each seed once"
        )
    alone = workers == 1 or len(tasks) < 2
    own = runtime if alone else replace(runtime, threads=runtime.threads or 1, progress=silent)
    held_out = rows.test if test else rows.test.take([])
    shared = _Shared(rows.train, rows.val, held_out, coded or CodedImages(), own, store)
    done: Iterable[tuple[tuple[Arm, int], Predictions]] = ((task, _train(shared, *task)) for task in tasks.values())
    if not alone:
        engine = EngineChoice("local", min(workers, len(tasks)))
        done = run_tasks(engine, _trainer, (shared,), tasks.values(), _lost, ahead=1)
    predictions: dict[tuple[str, int], Predictions] = {}
    runtime.progress("arms", 0, len(tasks))
    for (arm, seed), one in done:
        predictions[arm.name, seed] = one
        runtime.progress("arms", len(predictions), len(tasks))
    return _stacked(wanted, tuple(seeds), predictions)


def _check(rows: ExperimentRows, arms: Sequence[Arm]) -> None:
    """Raise InputError for an arm that cannot be trained or tested."""
    for arm in arms:
        settings = ClassifierSettings(**arm.settings)
        try:
            require_trainable(rows.train, rows.val, arm.added, settings)
        except InputError as error:
            raise InputError(f"arms.{arm.name}: {error}") from None
        if settings.task == "single-label":
            require_one_label(rows.test, "test")


def _train(shared: _Shared, arm: Arm, seed: int) -> Predictions:
    """Train one arm with one seed, or load it, and predict."""
    runtime, probe = replace(shared.runtime, seed=seed), shared.coded.of(arm)
    with runtime.limited():
        classifier = fit_classifier(
            shared.train, shared.val, added=arm.added, runtime=runtime, store=shared.store,
            name=f"{arm.name}, seed {seed}", **arm.settings,
        )  # fmt: skip
        predict = partial(predict_rows, classifier, store=shared.store)
        val, test = (predict(part.images).cpu().numpy() for part in (shared.val, shared.test))
    extra = None if probe is None else predict(probe).cpu().numpy()
    return Predictions(val, test, extra, curve_of(classifier.record["history"]), classifier.pace)


def _trainer(shared: _Shared) -> Callable[[tuple[Arm, int]], Predictions]:
    """Return what trains in a worker."""
    return lambda task: _train(shared, *task)


def _lost(task: tuple[Arm, int], how: str) -> Predictions:
    raise InputError(
        f"arms.{task[0].name}: its worker process ended unexpectedly, as happens when memory runs out; use fewer "
        "workers, and run again (finished work is kept)"
    )


def _stacked(arms: Sequence[Arm], seeds: tuple[int, ...], made: dict[tuple[str, int], Predictions]) -> TrainedArms:
    """Return the predictions as one array an arm."""
    paces = tuple(one.pace for one in made.values() if one.pace is not None)
    val = {arm.name: np.stack([made[arm.name, seed].val for seed in seeds]) for arm in arms}
    test = {arm.name: np.stack([made[arm.name, seed].test for seed in seeds]) for arm in arms}
    probed = [arm.name for arm in arms if made[arm.name, seeds[0]].coded is not None]
    coded = {name: np.stack([np.asarray(made[name, seed].coded) for seed in seeds]) for name in probed}
    curves = {arm.name: tuple(made[arm.name, seed].curve for seed in seeds) for arm in arms}
    return TrainedArms(seeds, val, test, coded, curves, paces, len(made) - len(paces))
