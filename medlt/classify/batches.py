"""Make the batches of a training: real and added rows, augmented and mixed. Step s is a function of (seed, s) and the
data.

Each purpose has a named random stream, indexed by the step number in the whole training. Two arms with one seed
therefore see the same real rows at the same step wherever both sample real rows alike.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from medlt.classify.augment import augmentation
from medlt.classify.mixup import ClassifierBatch, blend, share, shuffled
from medlt.classify.sets import TrainingSet
from medlt.classify.training_strategies import Stage
from medlt.rng import batch_indices, numpy_generator, torch_generator


def pools(labels: np.ndarray) -> list[np.ndarray]:
    """Return the positive rows [n_c] (labels of at least 0.5) of each finding that has one; labels [N,K] in [0,1] or
    NaN.
    """
    positive = [np.flatnonzero(labels[:, k] >= 0.5) for k in range(labels.shape[1])]
    return [rows for rows in positive if len(rows)]


def balanced_indices(pools: list[np.ndarray], size: int, step: int, *key: object) -> np.ndarray:
    """Return class-balanced rows of step `step`: for each slot a finding of `pools`, uniformly, then one of its rows.

    Rows without a positive are never drawn. The result is a pure function of the arguments.
    """
    drawn = numpy_generator(*key, "balanced", step)
    which, where = drawn.integers(len(pools), size=size), drawn.random(size)
    return np.array([pools[k][int(u * len(pools[k]))] for k, u in zip(which, where, strict=True)])


class Batches:
    """Return the batch of a step of one stage, from real and added rows.

    Rows are held on the CPU; images move to `device` as 8 bit.
    """

    def __init__(
        self,
        real: TrainingSet,
        added: TrainingSet | None,
        stage: Stage,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        synthetic_fraction: float = 0.0,
        augment: str = "light",
        mixup: str = "none",
        mixup_alpha: float = 0.2,
    ) -> None:
        self.real, self.stage = real, stage
        self.added = added if added is not None and len(added) and stage.rows != "real" else None
        self.seed, self.size, self.synthetic_fraction, self.device = seed, batch_size, synthetic_fraction, device
        self.augment = augmentation(augment)
        self.mixup, self.alpha = mixup, mixup_alpha
        self.pools = pools(real.labels) if stage.balanced or mixup == "balanced" else []

    def __call__(self, step: int) -> ClassifierBatch:
        """Return the batch of step `step` of the whole training."""
        first = self._moved(self._rows(step), "augment", step)
        if self.mixup == "none":
            return first
        drawn = numpy_generator(self.seed, "mixup", step)
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
        """Return the number of added rows in the step."""
        if self.added is None:
            return 0
        return self.size if self.stage.rows == "added" else len(self._slots(step))

    def _slots(self, step: int) -> np.ndarray:
        """Return the slots of the step that hold added rows."""
        return np.flatnonzero(numpy_generator(self.seed, "mix", step).random(self.size) < self.synthetic_fraction)

    def _rows(self, step: int) -> ClassifierBatch:
        """Return the 8-bit rows of one step."""
        if self.stage.rows == "added" and self.added is not None:
            rows = batch_indices(len(self.added), self.size, step, self.seed, "added")
            return _take(self.added, rows, len(rows))
        if self.stage.balanced:
            return self._mixed(self._balanced(step, "real"), step)
        return self._mixed(_take(self.real, batch_indices(len(self.real), self.size, step, self.seed, "real")), step)

    def _balanced(self, step: int, name: str) -> ClassifierBatch:
        """Return real rows sampled by class, or uniformly where no finding has a positive."""
        if not self.pools:
            return _take(self.real, batch_indices(len(self.real), self.size, step, self.seed, name))
        return _take(self.real, balanced_indices(self.pools, self.size, step, self.seed, name))

    def _mixed(self, batch: ClassifierBatch, step: int) -> ClassifierBatch:
        """Replace each slot by an added row with probability `mix`."""
        if self.added is None:
            return batch
        slots = self._slots(step)
        other = _take(self.added, batch_indices(len(self.added), self.size, step, self.seed, "added")[slots])
        at = torch.from_numpy(slots)
        batch.images[at], batch.labels[at], batch.weights[at] = other.images, other.labels, other.weights
        return ClassifierBatch(batch.images, batch.labels, batch.weights, len(slots))

    def _moved(self, batch: ClassifierBatch, name: str, step: int) -> ClassifierBatch:
        """Convert 8-bit images to float in [0,1] and augment them; features stay as they are."""
        floats = batch.images.to(self.device)
        floats = floats.float() / 255 if floats.dtype == torch.uint8 else floats
        images = self.augment(floats, torch_generator(self.seed, name, step))
        return ClassifierBatch(images, batch.labels, batch.weights, batch.added)


def _take(rows: TrainingSet, at: np.ndarray, added: int = 0) -> ClassifierBatch:
    """Return a copy of the rows `at`, images uint8."""
    labels, weights = (torch.from_numpy(part[at].astype(np.float32)) for part in (rows.labels, rows.weights))
    return ClassifierBatch(rows.images[torch.from_numpy(at)], labels, weights, added)
