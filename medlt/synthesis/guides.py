"""Guides: what a method adds to the unguided sampler, made anew for each call of the sampler.

A guide is told of the rows in hand and answers a `Guidance` (medlt.diffusion.guidance), a function from denoiser to
denoiser. So guides compose with each other and with any start, and a guide of weight 0 is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.guidance import compose
from medlt.types import Denoiser, Guidance


@dataclass(frozen=True)
class SamplingContext:
    """The rows of one call of the sampler, B of them; tensors are on the backbone's device.

    condition [B,...]: what the network is told; labels [B,K] in [0,1] or NaN; target int64 [B]: column of the finding
    each row is made for; seeds int64 [B]: of each row's own chance; timesteps: those the sampler will ask at, falling.
    """

    backbone: Backbone
    condition: Tensor
    labels: Tensor
    target: Tensor
    seeds: Tensor
    timesteps: Sequence[float]

    @cached_property
    def conditional(self) -> Denoiser:
        """x0 estimates under the rows' conditions alone; one object, so that a guide can tell whether it guides it."""
        return self.backbone.denoiser(self.condition)


class Guide(Protocol):
    """SamplingContext of the rows, answers how their denoiser is guided. A row's guidance depends on the row alone."""

    def __call__(self, told: SamplingContext) -> Guidance:
        """A denoiser in, a guided denoiser out, for these rows."""
        ...


def guided(guides: Sequence[Guide], told: SamplingContext, weight: float) -> Denoiser:
    """Classifier-free guidance of `weight`, then the guides in order, the first innermost."""
    bare = told.conditional if weight == 1 else told.backbone.guided(told.condition, weight)
    return compose(*(guide(told) for guide in guides))(bare)


def targets(names: pd.Series, findings: Sequence[str]) -> Tensor:
    """int64 [B]: columns of the findings that rows are made for."""
    return torch.tensor([list(findings).index(name) for name in names], dtype=torch.int64)
