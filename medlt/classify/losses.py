"""Multi-label losses for a long tail. Unknown labels (NaN) are masked; labels may be soft; rows may be weighted.

Notation: z logits, p = sigmoid(z), y label in [0,1] or NaN, all [B,K]; w row weight [B]. Every loss is
sum(w * m * l) / sum(m) with m = 1 where y is known: a row of weight w pulls w times as hard, whatever its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.types import InputError

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B,K], labels [B,K], weights [B]) -> scalar."""


def positive_weights(labels: Tensor, most: float = 10.0) -> Tensor:
    """Class-balanced weight of a positive: N_c / (n_c K), clipped to [1/most, most]; labels [N,K] -> [K].

    N_c counts known labels, n_c positives (soft ones by their value). A finding without positives gets `most`.
    """
    known = (~labels.isnan()).sum(0)
    positive = labels.nan_to_num(0).sum(0)
    return (known / (positive * labels.shape[1]).clamp(min=1e-6)).clamp(1 / most, most)


def _masked_mean(values: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of `values` [B,K] over known labels; 0, with zero gradient, when none is known."""
    known = ~labels.isnan()
    return (torch.where(known, values, 0) * weights[:, None]).sum() / known.sum().clamp(min=1)


def balanced(logits: Tensor, labels: Tensor, weights: Tensor, positive_weight: Tensor) -> Tensor:
    """Binary cross-entropy, positives of finding c weighted by positive_weight[c]."""
    known = labels.nan_to_num(0)
    values = F.binary_cross_entropy_with_logits(logits, known, pos_weight=positive_weight, reduction="none")
    return _masked_mean(values, labels, weights)


def asymmetric(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    gamma_positive: float = 1.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
) -> Tensor:
    """Asymmetric loss (Ridnik et al., arXiv 2009.14119, eq. 4-7): easy negatives fade, those with p < margin vanish.

    l = - y (1-p)^gamma+ log p - (1-y) q^gamma- log(1-q), q = max(p - margin, 0).
    """
    known = labels.nan_to_num(0)
    p = logits.sigmoid()
    q = (p - margin).clamp(min=0)
    positive = known * (1 - p) ** gamma_positive * F.logsigmoid(logits)
    negative = (1 - known) * q**gamma_negative * torch.log1p(-q)
    return _masked_mean(-positive - negative, labels, weights)


def loss(name: str, labels: Tensor) -> Loss:
    """A loss by name; "balanced" takes its class weights from the real train `labels` [N,K], alike for all arms."""
    if name == "balanced":
        return partial(balanced, positive_weight=positive_weights(labels))
    if name == "asymmetric":
        return asymmetric
    raise InputError(f"no loss named {name!r}; choose balanced or asymmetric")
