"""Every arm with every seed: trained or found trained, in this process or in several, and asked about held-out rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import numpy as np
import torch

from medlt.classify.sets import TrainingSet, require_one_label
from medlt.classify.train import Settings, fit, require_trainable
from medlt.evaluation.arms import Arm
from pipelines.stages import Progress, quiet


@dataclass(frozen=True)
class Rows:
    """What all arms share."""

    train: TrainingSet
    val: TrainingSet
    test: TrainingSet
    folder: Path
    threads: int | None
    device: str


@dataclass(frozen=True)
class Told:
    """What one trained classifier says of validation and test rows, [V,K] and [N,K]; its pace if it was trained now."""

    val: np.ndarray
    test: np.ndarray
    pace: tuple[float, float] | None


@dataclass
class Trained:
    """All of it: val[arm] [S,V,K], test[arm] [S,N,K]; (images a second, busy share) of each that was trained now."""

    val: dict[str, np.ndarray] = field(default_factory=dict)
    test: dict[str, np.ndarray] = field(default_factory=dict)
    paces: list[tuple[float, float]] = field(default_factory=list)


def one(rows: Rows, arm: Arm, seed: int, progress: Progress = quiet) -> Told:
    """Train one arm with one seed, or find it trained. Raises InputError for settings that do not go together."""
    torch.set_num_threads(rows.threads or torch.get_num_threads())
    found = fit(
        rows.train, rows.val, added=arm.added, folder=rows.folder, name=f"{arm.name}, seed {seed}", progress=progress,
        device=rows.device, **{**arm.settings, "seed": seed},
    )  # fmt: skip
    val, test = (found.predict(part.images).numpy() for part in (rows.val, rows.test))
    pace = (found.pace.images_per_second, found.pace.busy) if found.pace else None
    return Told(val, test, pace)


_shared: list[Rows] = []


def _share(rows: Rows) -> None:
    """Each worker is given the rows once, and ends with the process that began it, however that one ends."""
    _shared[:] = [rows]
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _in_worker(arm: Arm, seed: int) -> Told:
    return one(_shared[0], arm, seed)


def _everywhere(rows: Rows, arms: Sequence[Arm], seeds: Sequence[int], workers: int) -> Iterator[tuple[str, int, Told]]:
    """(arm, seed, what it says) in whatever order they end."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _share, (rows,)) as pool:
        waiting = {pool.submit(_in_worker, arm, seed): (arm.name, seed) for arm in arms for seed in seeds}
        try:
            for done in as_completed(waiting):
                yield (*waiting[done], done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train(rows: Rows, arms: Sequence[Arm], seeds: Sequence[int], workers: int, progress: Progress) -> Trained:
    """Seed s of one arm starts from the weights of seed s of another. Equal arms are trained once.

    Raises InputError, before any is trained, for an arm that cannot be.
    """
    for arm in arms:
        require_trainable(rows.train, rows.val, arm.added, Settings(**arm.settings))
        if arm.settings.get("task") == "single-label":
            require_one_label(rows.test, "test")
    found: Iterable[tuple[str, int, Told]]
    if workers > 1:
        found = _everywhere(rows, arms, seeds, workers)
    else:
        found = ((arm.name, seed, one(rows, arm, seed, progress)) for arm in arms for seed in seeds)
    told: dict[tuple[str, int], Told] = {}
    progress("arms", 0, len(arms) * len(seeds))
    for name, seed, said in found:
        told[name, seed] = said
        progress("arms", len(told), len(arms) * len(seeds))
    whole = Trained(paces=[said.pace for said in told.values() if said.pace])
    for arm in arms:
        whole.val[arm.name] = np.stack([told[arm.name, seed].val for seed in seeds])
        whole.test[arm.name] = np.stack([told[arm.name, seed].test for seed in seeds])
    return whole
