"""Statistics of the members of an epistemic head: how uncertain each label of an image is.

| symbol | meaning |
|---|---|
| l | logits of the classifier, [B,K] |
| l_m, p_m | logits of member m, sigmoid(l_m), [B,K] |
| H | entropy of a coin in nats, H(p) = -p log p - (1-p) log(1-p) |

Statistics of a finding; all grow with uncertainty or difficulty:

| name | formula | saturates | of what |
|---|---|---|---|
| variance | mean_m (l_m - mean l_m)^2 | no | members: what more rows would settle; the default |
| bald | H(mean_m p_m) - mean_m H(p_m) | at log 2 | members (arXiv 1112.5745): also follows label noise |
| entropy | H(sigmoid(l)) | at log 2 | the classifier |
| margin | 1 - abs(2 sigmoid(l) - 1) | at 1 | the classifier |
| energy | -log(1 + exp(l)), the free energy of one finding (arXiv 2109.14162) | at 0 | the classifier |

Over all findings at once, the largest energy means that no finding is present and the largest entropy means that every
label is undecided. Guidance therefore climbs a statistic of the image's own finding only, with an anchor on its label
(`medlt.synthesis.longtail`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional as F

from medlt.types import InputError

Statistic: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(logits of the classifier [B,K], of the members [M,B,K]) -> [B,K]; larger means more uncertain or harder."""


def _coin(logits: Tensor) -> Tensor:
    """Return H(sigmoid(l)), in nats."""
    return F.softplus(logits) - logits * logits.sigmoid()


def bald(base: Tensor, members: Tensor) -> Tensor:
    """Return the mutual information of the label and the member, in nats; 0 if the members agree."""
    yes, no = (F.logsigmoid(sign).logsumexp(0) - math.log(len(members)) for sign in (members, -members))
    return -(yes.exp() * yes + no.exp() * no) - _coin(members).mean(0)


STATISTICS: Mapping[str, Statistic] = {
    "bald": bald,
    "variance": lambda base, members: members.var(0, correction=0),
    "entropy": lambda base, members: _coin(base),
    "margin": lambda base, members: 1 - (2 * base.sigmoid() - 1).abs(),
    "energy": lambda base, members: -F.softplus(base),
}


def statistic(name: str) -> Statistic:
    """Return a statistic by name. Raises InputError for an unknown name."""
    if name not in STATISTICS:
        raise InputError(f"no statistic named {name!r}; choose one of {', '.join(STATISTICS)}")
    return STATISTICS[name]
