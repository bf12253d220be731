"""Check for near-copies of real images: compare each image with all real training images, under the given measures.

A measure maps images to unit vectors. An image is a near-copy if its isolation with its nearest real image
(`medlt.metrics.nearest.isolation`) is stronger, under one measure, than that of all but a given share of held-out real
images. The limit of a measure is that quantile of the held-out images' ratios, with the share divided by the number of
measures (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from medlt.checks.limit import check_limit
from medlt.metrics.nearest import isolation
from medlt.rng import numpy_generator
from medlt.types import Batch, CheckResult, InputError

Measure: TypeAlias = Callable[[Tensor], Tensor]
"""Images [B,1,H,W], uint8 or float in [0,1] -> unit vectors [B,D], on the CPU."""


MOST = 4096
"""Most held-out images that set a limit. Those of a drawn sample are as exchangeable with a new image as all are."""


@dataclass(frozen=True)
class NearCopyMetric:
    """One measure, all training images under it, [N,D], and the ratio below which an image is a near-copy."""

    measure: Measure
    train: Tensor
    limit: float

    def value(self, images: Tensor, neighbours: int) -> Tensor:
        """Return ratios of images [B,1,H,W] as multiples of the limit, [B]; NaN for a non-finite image."""
        good = images.isfinite().flatten(1).all(1) if images.is_floating_point() else torch.ones(len(images)).bool()
        ratio = isolation(self.measure(images.nan_to_num(0, 0, 0)), self.train, neighbours).ratio
        return torch.where(good.cpu(), ratio / self.limit, torch.nan)


@dataclass(frozen=True)
class NearCopy:
    """Value: isolation with the nearest training image, as a multiple of the measure's limit; the lowest of all
    measures.
    """

    metrics: tuple[NearCopyMetric, ...]
    neighbours: int = 50
    limit: float = 1.0
    name: ClassVar[str] = "near_copy"
    passes_above: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image."""
        values = torch.ones(0)
        if len(batch.images):
            values = torch.stack([one.value(batch.images, self.neighbours) for one in self.metrics]).min(0).values
        return check_limit(self, batch, values, "nearer to one real training image than held-out real images are")


def near_copy_limit(
    measure: Measure, held_out: Tensor, train: Tensor, false_positive_rate: float, neighbours: int = 50
) -> float:
    """Return the ratio that at most `false_positive_rate` of real held-out images fall below, for one measure.

    held_out: images [M,1,H,W] of patients outside the training set, best one per patient; train: unit vectors [N,D]. A
    new held-out image falls below with a probability of at most the rate (M + 1 exchangeable images). Of more than MOST
    images, MOST are drawn. Raises InputError where M images cannot resolve the rate.
    """
    if len(held_out) > MOST:
        held_out = held_out[numpy_generator("near-copy", len(held_out)).choice(len(held_out), MOST, replace=False)]
    ratios = isolation(measure(held_out), train, neighbours).ratio.sort().values
    below = int(false_positive_rate * (len(ratios) + 1) + 1e-9)
    if not 1 <= below <= len(ratios):
        raise InputError(
            f"{len(ratios)} held-out images cannot resolve a false-positive rate of {false_positive_rate:g} a measure;"
            f" give at least {int(1 / false_positive_rate) if false_positive_rate > 0 else 'some'} or a higher rate"
        )
    return float(ratios[below - 1].clamp_min(1e-6))


def near_copy(
    measures: Sequence[Measure], held_out: Tensor, train: Tensor, false_positive_rate: float = 0.02,
    neighbours: int = 50,
) -> NearCopy:  # fmt: skip
    """Return the near-copy filter of these measures, from real images held out [M,1,H,W] and trained on [N,1,H,W]."""
    metrics = []
    for measure in measures:
        vectors, rate = measure(train), false_positive_rate / len(measures)
        metrics.append(NearCopyMetric(measure, vectors, near_copy_limit(measure, held_out, vectors, rate, neighbours)))
    return NearCopy(tuple(metrics), neighbours)
