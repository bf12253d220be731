"""The batches of a training: real and added rows, augmented and mixed. Step s is a function of (seed, s) and the data.

A named stream is drawn for each purpose, by the number of the step in the whole course: two arms with one seed see the
same real rows at the same step wherever both sample real rows alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch

from medlt.chance import batch_indices, generator, rng
from medlt.classify.augment import augmentation
from medlt.classify.courses import Stage
from medlt.classify.mixup import Batch, blend, share, shuffled
from medlt.classify.sets import TrainingSet


def pools(labels: np.ndarray) -> list[np.ndarray]:
    """Rows [n_c] that are positive (at least 0.5) for each finding that has one; labels [N,K] in [0,1] or NaN."""
    found = [np.flatnonzero(labels[:, k] >= 0.5) for k in range(labels.shape[1])]
    return [rows for rows in found if len(rows)]


def balanced_indices(pools: list[np.ndarray], size: int, step: int, *key: object) -> np.ndarray:
    """Rows of step `step` sampled by class: for each slot a finding of `pools`, uniformly, then one of its rows.

    Of multi-label rows those without a positive never come. A pure function of its arguments.
    """
    drawn = rng(*key, "balanced", step)
    which, where = drawn.integers(len(pools), size=size), drawn.random(size)
    return np.array([pools[k][int(u * len(pools[k]))] for k, u in zip(which, where, strict=True)])


class Batches:
    """batch(step) of one stage, for real and added rows on the CPU; images are moved to `device` as 8 bit."""

    def __init__(
        self,
        real: TrainingSet,
        added: TrainingSet | None,
        stage: Stage,
        *,
        seed: int,
        batch: int,
        device: torch.device,
        mix: float = 0.0,
        augment: str = "light",
        mixup: str = "none",
        mixup_alpha: float = 0.2,
    ) -> None:
        self.real, self.stage = real, stage
        self.added = added if added is not None and len(added) and stage.rows != "real" else None
        self.seed, self.size, self.mix, self.device = seed, batch, mix, device
        self.augment = augmentation(augment)
        self.mixup, self.alpha = mixup, mixup_alpha
        self.pools = pools(real.labels) if stage.balanced or mixup == "balanced" else []

    def __call__(self, step: int) -> Batch:
        """The batch of step `step` of the course."""
        first = self._moved(self._rows(step), "augment", step)
        if self.mixup == "none":
            return first
        drawn = rng(self.seed, "mixup", step)
        part = share(self.mixup, self.alpha, drawn)
        if self.mixup == "mixup":
            return blend(first, shuffled(first, drawn), part)
        return blend(first, self._moved(self._balanced(step, "partner"), "augment partner", step), part)

    def count(self, steps: int) -> Counter[str]:
        """Return how many "real" and "added" rows the first `steps` steps of the stage hold."""
        seen = Counter(real=0, added=0)
        for step in range(self.stage.start, self.stage.start + steps):
            added = self._added(step)
            seen.update(added=added, real=self.size - added)
        return seen

    def _added(self, step: int) -> int:
        """How many added rows the step holds."""
        if self.added is None:
            return 0
        return self.size if self.stage.rows == "added" else len(self._slots(step))

    def _slots(self, step: int) -> np.ndarray:
        """The slots of the step that are given to added rows."""
        return np.flatnonzero(rng(self.seed, "mix", step).random(self.size) < self.mix)

    def _rows(self, step: int) -> Batch:
        """The 8-bit rows of one step."""
        if self.stage.rows == "added" and self.added is not None:
            rows = batch_indices(len(self.added), self.size, step, self.seed, "added")
            return _take(self.added, rows, len(rows))
        if self.stage.balanced:
            return self._mixed(self._balanced(step, "real"), step)
        return self._mixed(_take(self.real, batch_indices(len(self.real), self.size, step, self.seed, "real")), step)

    def _balanced(self, step: int, name: str) -> Batch:
        """Real rows sampled by class; as they come where no finding has a positive."""
        if not self.pools:
            return _take(self.real, batch_indices(len(self.real), self.size, step, self.seed, name))
        return _take(self.real, balanced_indices(self.pools, self.size, step, self.seed, name))

    def _mixed(self, batch: Batch, step: int) -> Batch:
        """Each slot given to an added row with probability `mix`."""
        if self.added is None:
            return batch
        slots = self._slots(step)
        other = _take(self.added, batch_indices(len(self.added), self.size, step, self.seed, "added")[slots])
        at = torch.from_numpy(slots)
        batch.images[at], batch.labels[at], batch.weights[at] = other.images, other.labels, other.weights
        return Batch(batch.images, batch.labels, batch.weights, len(slots))

    def _moved(self, batch: Batch, name: str, step: int) -> Batch:
        """8 bit -> float in [0,1], augmented."""
        floats = batch.images.to(self.device).float() / 255
        images = self.augment(floats, generator(self.seed, name, step))
        return Batch(images, batch.labels, batch.weights, batch.added)


def _take(rows: TrainingSet, at: np.ndarray, added: int = 0) -> Batch:
    """A copy of the rows `at`, images uint8."""
    labels, weights = (torch.from_numpy(part[at].astype(np.float32)) for part in (rows.labels, rows.weights))
    return Batch(rows.images[torch.from_numpy(at)], labels, weights, added)


class Ahead:
    """make(step) for steps asked for in order, the next one made by a background thread meanwhile."""

    def __init__(self, make: Callable[[int], Batch], end: int) -> None:
        self.make, self.end = make, end
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, step: int) -> Batch:
        """The batch of `step`; the one after it is begun, if it is before `end`."""
        asked = self.next[1] if self.next and self.next[0] == step else self.pool.submit(self.make, step)
        batch = asked.result()
        self.next = (step + 1, self.pool.submit(self.make, step + 1)) if step + 1 < self.end else None
        return batch
