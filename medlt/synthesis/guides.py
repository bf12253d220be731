"""Guides: functions from the rows of a sampler call to a guidance of their denoiser.

A guide takes a `SamplingContext` and returns a `Guidance` (`medlt.diffusion.guidance`), a function from denoiser to
denoiser. Therefore guides compose with each other and with any start, and a guide of weight 0 is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.backbone import EVERYWHERE, Backbone, ClassifierFree
from medlt.diffusion.guidance import compose
from medlt.types import Denoiser, Guidance


@dataclass(frozen=True)
class SamplingContext:
    """The B rows of one call of the sampler; tensors are on the backbone's device.

    condition [B,...]: input of the network; labels [B,K] in [0,1] or NaN; target int64 [B]: column of the finding that
    each row is made for; seeds int64 [B]: of each row's random numbers; timesteps: those of the sampler, falling.
    """

    backbone: Backbone
    condition: Tensor
    labels: Tensor
    target: Tensor
    seeds: Tensor
    timesteps: Sequence[float]

    @cached_property
    def conditional(self) -> Denoiser:
        """Return x0 estimates under the conditions alone.

        It is one object, so that guidance can test whether it is the denoiser that it guides.
        """
        return self.backbone.denoiser(self.condition)


class Guide(Protocol):
    """Rows -> guidance of their denoiser. The guidance of a row depends on that row alone."""

    def __call__(self, context: SamplingContext) -> Guidance:
        """Return a function from denoiser to guided denoiser, for these rows."""
        ...


def guided(
    guides: Sequence[Guide], context: SamplingContext, scale: float, interval: tuple[float, float] = EVERYWHERE
) -> Denoiser:
    """Return the denoiser with classifier-free guidance of `scale`, then the guides in order, the first innermost.

    interval: the timesteps of classifier-free guidance, see `medlt.diffusion.backbone.ClassifierFree`.
    """
    bare = context.backbone.guided(context.condition, scale, interval)
    if scale == 1:
        bare = context.conditional
    elif isinstance(bare, ClassifierFree):
        bare = replace(bare, conditional=context.conditional)
    return compose(*(guide(context) for guide in guides))(bare)


def target_columns(names: pd.Series, findings: Sequence[str]) -> Tensor:
    """Return the columns of the findings that rows are made for, int64 [B]."""
    return torch.tensor([list(findings).index(name) for name in names], dtype=torch.int64)
