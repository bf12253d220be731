"""Losses for a long tail, multi-label (sigmoid) and single-label (softmax).

Unknown labels (NaN) are masked; labels may be soft; rows may be weighted. Counts come from the real train labels, so
they are the same for all arms. Every loss is linear in the labels, so the loss of mixed labels is the mix of losses.

| symbol | meaning |
|---|---|
| z, y | logits and labels in [0,1] or NaN, [B,K] |
| p | sigmoid(z), or softmax(z) over the findings |
| w | row weight [B] |
| n+, n- | positives and negatives of a finding among the real train labels; single-label has n+ only |
| v+, v- | class weights [K] of a positive and of a negative; 1 unless a loss defines others |

multi-label: l = v+ y l+(z) + v- (1-y) l-(z), [B,K]; m = 1 where y is known single-label: l = sum_c v+_c y_c l_c(z),
[B]; m = 1 for a row whose labels are all known

and the loss is sum(w m l) / sum(m): a row of weight w counts w times, in any batch. Class weights are not normalised.
Where a paper speaks of classes, a finding of the multi-label task is a problem of two classes, its positives and its
negatives.

| name | multi-label | single-label |
|---|---|---|
| plain | binary cross-entropy | cross-entropy |
| balanced | v+ = N / (n+ K), clipped | the same |
| class_balanced | v = 1 / effective number, arXiv 1901.05555 | the same |
| focal | (1 - p of the label)^2, arXiv 1708.02002, without its alpha | the same |
| ldam | margins ~ n^(-1/4), arXiv 1906.07413, for a head of cosines | the same |
| logit_adjusted | z + log(n+ / n-), arXiv 2007.07314, eq. 10 | z + log(n+ / N) |
| balanced_softmax | - | arXiv 2007.10740: softmax weighted by n+, equal to logit_adjusted |
| asymmetric | arXiv 2009.14119 | - |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.types import InputError

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B,K], labels [B,K], weights [B]) -> scalar."""

TASKS = ("multi-label", "single-label")
SCALE = 30.0  # of the cosines that a head gives for "ldam", as published


@dataclass(frozen=True)
class Pull:
    """Class weights v+ and v-, [K] each."""

    positive: Tensor
    negative: Tensor

    def __mul__(self, other: Pull) -> Pull:
        return Pull(self.positive * other.positive, self.negative * other.negative)


Values: TypeAlias = Callable[[Tensor, Tensor, Pull], Tensor]
"""(logits [B,K], labels [B,K] without NaN, class weights) -> l, [B,K] or [B,1]."""


def counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return n+ and n-, float [K] each, of labels [N,K]; soft labels count by value, unknown ones do not count."""
    positive = labels.nan_to_num(0).sum(0)
    return positive, (~labels.isnan()).sum(0) - positive


def positive_weights(labels: Tensor, most: float = 10.0) -> Tensor:
    """Return the class-balanced weights [K] of positives: N_c / (n_c K), clipped to [1/most, most]; labels [N,K].

    N_c counts known labels, n_c positives (soft ones by their value). A finding without positives gets `most`.
    """
    known = (~labels.isnan()).sum(0)
    positive = labels.nan_to_num(0).sum(0)
    return (known / (positive * labels.shape[1]).clamp(min=1e-6)).clamp(1 / most, most)


def effective_weights(number: Tensor, beta: float = 0.9999) -> Tensor:
    """Return (1 - beta) / (1 - beta^n) along dimension 0, scaled to mean 1 (Cui et al., arXiv 1901.05555, section 3).

    number: n, [C] or [C,K], C classes. A class without examples is left out of the mean and has weight 1. beta = 0
    gives 1 everywhere; beta -> 1 gives weights as 1 / n.
    """
    present = number > 0
    n = torch.where(present, number, 1).double()
    raw = torch.where(present, (1 - beta) / (1 - beta**n), 0)
    scaled = raw / raw.sum(0).clamp(min=1e-12) * present.sum(0)
    return torch.where(present, scaled, 1).to(number)


def margins(number: Tensor, most: float = 0.5) -> Tensor:
    """Return C / n^(1/4) with the largest margin `most` (Cao et al., arXiv 1906.07413, section 3.2); number n of any
    shape.

    A class without examples has the margin of the rarest class.
    """
    present = number[number > 0]
    least = present.min() if len(present) else torch.ones_like(number).min()
    return most * (least / number.clamp(min=least)) ** 0.25


def log_odds(labels: Tensor) -> Tensor:
    """Return log(n+ / n-), [K]; n+ and n- are at least half an example, and a finding without known labels has 0."""
    positive, negative = (n.clamp(min=0.5) for n in counts(labels))
    return torch.where((~labels.isnan()).any(0), positive.log() - negative.log(), 0)


def log_prior(labels: Tensor) -> Tensor:
    """Return log(n+ / N), [K], of one-hot labels [N,K]; n+ is at least half an example."""
    positive = counts(labels)[0].clamp(min=0.5)
    return positive.log() - positive.sum().log()


def _mean(values: Tensor, known: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of `values` over `known`, both [B,K] or [B,1]; 0, with zero gradient, when none is
    known.
    """
    return (torch.where(known, values, 0) * weights[:, None]).sum() / known.sum().clamp(min=1)


def _cross_entropies(logits: Tensor, labels: Tensor, pull: Pull, shift: Tensor | float = 0.0) -> Tensor:
    """Return binary cross-entropies of logits + shift, [B,K]."""
    ratio = pull.positive / pull.negative
    values = F.binary_cross_entropy_with_logits(logits + shift, labels, pos_weight=ratio, reduction="none")
    return values * pull.negative


def asymmetric(
    logits: Tensor,
    labels: Tensor,
    pull: Pull,
    gamma_positive: float = 1.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
) -> Tensor:
    """Return the asymmetric loss [B,K] (Ridnik et al., arXiv 2009.14119, eq. 4-7), which down-weights easy negatives.

    l+ = -(1-p)^gamma+ log p, l- = -q^gamma- log(1-q), q = max(p - margin, 0). Negatives with p < margin have no loss.
    """
    p = logits.sigmoid()
    q = (p - margin).clamp(min=0)
    positive = labels * (1 - p) ** gamma_positive * F.logsigmoid(logits)
    negative = (1 - labels) * q**gamma_negative * torch.log1p(-q)
    return -positive * pull.positive - negative * pull.negative


def focal(logits: Tensor, labels: Tensor, pull: Pull, gamma: float = 2.0) -> Tensor:
    """Return the focal loss [B,K] (Lin et al., arXiv 1708.02002, eq. 4): l+ = -(1-p)^gamma log p, l- = -p^gamma
    log(1-p).
    """
    positive = labels * (-logits).sigmoid() ** gamma * F.softplus(-logits)
    negative = (1 - labels) * logits.sigmoid() ** gamma * F.softplus(logits)
    return positive * pull.positive + negative * pull.negative


def ldam(logits: Tensor, labels: Tensor, pull: Pull, positive: Tensor, negative: Tensor) -> Tensor:
    """Return LDAM with a sigmoid, [B,K]: l+ = softplus(m+ - z), l- = softplus(z + m-), margins [K] in units of the
    logits.
    """
    above, below = F.softplus(positive - logits), F.softplus(logits + negative)
    return labels * above * pull.positive + (1 - labels) * below * pull.negative


def _softmax(logits: Tensor, labels: Tensor, pull: Pull, shift: Tensor | float = 0.0) -> Tensor:
    """Return cross-entropies of logits + shift, [B,1]."""
    return _of_classes(-(logits + shift).log_softmax(1), labels, pull)


def softmax_focal(logits: Tensor, labels: Tensor, pull: Pull, gamma: float = 2.0) -> Tensor:
    """Return the focal loss with a softmax, [B,1]: l_c = -(1 - p_c)^gamma log p_c."""
    log_p = logits.log_softmax(1)
    return _of_classes(-((-log_p.expm1()) ** gamma) * log_p, labels, pull)


def softmax_ldam(logits: Tensor, labels: Tensor, pull: Pull, margin: Tensor) -> Tensor:
    """Return LDAM [B,1]: l_c is the cross-entropy after the logit of c alone is lowered by margin[c], [K]."""
    lowered = logits[:, None, :] - torch.diag(margin.to(logits))  # row c of [B,K,K]: what is seen if c is the class
    return _of_classes(-lowered.log_softmax(2).diagonal(dim1=1, dim2=2), labels, pull)


def _of_classes(values: Tensor, labels: Tensor, pull: Pull) -> Tensor:
    """Return sum_c v+_c y_c l_c: [B,K] -> [B,1]."""
    return (values * labels * pull.positive).sum(1, keepdim=True)


Terms: TypeAlias = Callable[[Tensor], tuple[Values, Pull | None]]
"""Real train labels [N,K] -> the values of a loss, and its class weights if they are not 1."""


def _balanced(labels: Tensor) -> Pull:
    return Pull(weights := positive_weights(labels), torch.ones_like(weights))


def effective(labels: Tensor, task: str) -> Pull:
    """Return class weights by effective numbers: over the findings, or over the two classes of each finding."""
    positive, negative = counts(labels)
    if task == "single-label":
        return Pull(weights := effective_weights(positive), torch.ones_like(weights))
    return Pull(*effective_weights(torch.stack([positive, negative])))


def _sigmoid_margins(labels: Tensor) -> Values:
    positive, negative = margins(torch.stack(counts(labels))) * SCALE
    return partial(ldam, positive=positive, negative=negative)


LOSSES: dict[str, dict[str, Terms]] = {
    "multi-label": {
        "balanced": lambda y: (_cross_entropies, _balanced(y)),
        "plain": lambda y: (_cross_entropies, None),
        "asymmetric": lambda y: (asymmetric, None),
        "class_balanced": lambda y: (_cross_entropies, effective(y, "multi-label")),
        "focal": lambda y: (focal, None),
        "ldam": lambda y: (_sigmoid_margins(y), None),
        "logit_adjusted": lambda y: (partial(_cross_entropies, shift=log_odds(y)), None),
    },
    "single-label": {
        "balanced": lambda y: (_softmax, _balanced(y)),
        "plain": lambda y: (_softmax, None),
        "class_balanced": lambda y: (_softmax, effective(y, "single-label")),
        "focal": lambda y: (softmax_focal, None),
        "ldam": lambda y: (partial(softmax_ldam, margin=margins(counts(y)[0]) * SCALE), None),
        "logit_adjusted": lambda y: (partial(_softmax, shift=log_prior(y)), None),
        "balanced_softmax": lambda y: (partial(_softmax, shift=log_prior(y)), None),
    },
}


def entries(labels: Tensor, task: str = "multi-label") -> Tensor:
    """Return how many terms each row has in the mean of a loss, [B]: its known labels, or 1 if it knows all of them."""
    known = ~labels.isnan()
    return known.all(1).long() if task == "single-label" else known.sum(1)


def known_loss(name: str, task: str = "multi-label") -> None:
    """Raise InputError for a loss that the task does not have."""
    if task not in LOSSES:
        raise InputError(f"no task named {task!r}; choose one of {', '.join(TASKS)}")
    if name not in LOSSES[task]:
        raise InputError(f"no loss named {name!r} for the {task} task; choose one of {', '.join(LOSSES[task])}")


def loss(name: str, labels: Tensor, task: str = "multi-label", reweighted: bool = False) -> Loss:
    """Return a loss by name; counts are of the real train `labels` [N,K], the same for all arms.

    reweighted: class weights by effective numbers multiply those of the loss (deferred re-weighting). Raises InputError
    for a loss that the task does not have.
    """
    known_loss(name, task)
    values, weights = LOSSES[task][name](labels)
    pull = weights or Pull(torch.ones_like(labels[0]), torch.ones_like(labels[0]))
    pull = pull * effective(labels, task) if reweighted else pull

    def weighted(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        known = ~labels.isnan()
        seen = known.all(1, keepdim=True) if task == "single-label" else known
        return _mean(values(logits, labels.nan_to_num(0), pull), seen, weights)

    return weighted
