"""Mix images and labels of two batches: x = (1 - l) x_a + l x_b, y alike; one l a batch.

| name | a | b | l | source |
|---|---|---|---|---|
| mixup | a batch | the same in another order | Beta(alpha, alpha) | Zhang et al., arXiv 1710.09412 |
| balanced | a batch by instance | a batch sampled by class | Beta(alpha, 1) | Galdran et al. 2021, arXiv 2109.09850 |

Balanced-MixUp with a small alpha keeps l near 0 mostly: most images are almost unchanged, a few are mixed strongly with
a rare one. The authors' code does so (agaldran/balanced_mixup, train_lt_mxp.py). A widely read copy
(VITA-Group/LongTailCXR, src/utils.py, bal_mixup_train) differs in three points: it takes the second batch from the
first loader, so each image is mixed with itself and no class-balanced row is used; it weights the labels of a by l and
of b by 1 - l, opposite to the images; and it draws l from Beta(alpha, alpha).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medlt.types import InputError

MIXUPS = ("none", "mixup", "balanced")


@dataclass(frozen=True)
class ClassifierBatch:
    """images float [B,1,S,S] in [0,1], labels [B,K] in [0,1] or NaN, weights [B]; `added`: number of added rows."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    added: int = 0

    def to(self, device: torch.device) -> ClassifierBatch:
        """Return the batch on a device."""
        return ClassifierBatch(self.images.to(device), self.labels.to(device), self.weights.to(device), self.added)


def share(name: str, alpha: float, generator: np.random.Generator) -> float:
    """Draw l. Raises InputError for an alpha that is not above 0."""
    if alpha <= 0:
        raise InputError(f"mixup_alpha is {alpha}; give a number above 0, such as 0.2, or choose mixup none")
    return float(generator.beta(alpha, 1.0 if name == "balanced" else alpha))


def blend(a: ClassifierBatch, b: ClassifierBatch, share: float) -> ClassifierBatch:
    """Return (1 - share) a + share b, for images, labels and row weights.

    A label is unknown where it is unknown in a batch of non-zero share.
    """
    if share in (0.0, 1.0):
        return b if share else a

    def mean(one: Tensor, other: Tensor) -> Tensor:
        return (1 - share) * one + share * other

    return ClassifierBatch(mean(a.images, b.images), mean(a.labels, b.labels), mean(a.weights, b.weights), a.added)


def shuffled(batch: ClassifierBatch, generator: np.random.Generator) -> ClassifierBatch:
    """Return the same rows in another order."""
    order = torch.from_numpy(generator.permutation(len(batch.labels))).to(batch.images.device)
    return ClassifierBatch(batch.images[order], batch.labels[order], batch.weights[order], batch.added)
