"""Guides: functions from the rows of a sampler call to a guidance of their denoiser.

A guide takes a `SamplingContext` and returns a `Guidance` (`medlt.diffusion.guidance`), a function from denoiser to
denoiser. Therefore guides compose with each other and with any start, and a guide of weight 0 is the identity.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from medlt.diffusion.backbone import EVERYWHERE, Backbone, ClassifierFree
from medlt.diffusion.displacement import Displacement, displacement, reach
from medlt.diffusion.guidance import compose
from medlt.types import Denoiser, Guidance, InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingContext:
    """The B rows of one call of the sampler; tensors are on the backbone's device.

    condition [B,...]: input of the network; labels [B,K] in [0,1] or NaN; target int64 [B]: column of the finding that
    each row is made for; seeds int64 [B]: of each row's random numbers; timesteps: those of the sampler, falling;
    scheduler: returns a new scheduler of that sampler.
    """

    backbone: Backbone
    condition: Tensor
    labels: Tensor
    target: Tensor
    seeds: Tensor
    timesteps: Sequence[float]
    scheduler: Callable[[], Any]

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


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How strongly a guide acts, the same for every guide.

    weight: displacement of the finished latent, as a share of its norm; 0 is the identity
    response: displacement of the network's latents per displacement of the reference denoiser's
    (`medlt.diffusion.displacement`); `medlt calibrate` and every run measure it
    cap: limit of one move of an estimate, as a share of the latent's norm
    window: timesteps that may be guided, as shares of the trained ones
    every: guide each n-th of the sampler's steps in the window

    Raises InputError for a value out of range.
    """

    weight: float
    response: float = 1.0
    cap: float = 2.0
    every: int = 1
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.window
        if self.weight < 0 or self.every < 1 or not 0 <= low < high <= 1 or min(self.response, self.cap) <= 0:
            raise InputError(
                f"{type(self).__name__}: weight {self.weight}, every {self.every}, window {self.window}, response "
                f"{self.response}, cap {self.cap}; give a weight of 0 or more, every 1 or more, 0 <= low < high <= 1, "
                "and a response and a cap above 0"
            )

    def displaces(self, context: SamplingContext, form: Mapping[int, float], name: str) -> Displacement:
        """Return the moves of this strength in the proportions of `form`, t -> length. Warns of a cap that binds."""
        abar = context.backbone.noise.abar()
        strength = self.weight / self.response
        moves = displacement(strength, form, context.scheduler, context.timesteps, abar, self.cap)
        if moves.capped:
            cut = reach(context.scheduler, context.timesteps, {t: moves.at(t) for t in moves.lengths}, abar)
            most = self.response * cut.gain / cut.norm
            longest = max(moves.lengths.values())
            _warn(
                f"{name} guide: a displacement of {self.weight:g} needs moves of up to {longest:.2g} times the norm of "
                f"the latent, and the cap of {self.cap:g} allows {most:.2g}; guide more steps (every, window), lower "
                "the weight, or raise the cap"
            )
        return moves


@lru_cache
def _warn(text: str) -> None:
    """Log a warning once, not in every batch."""
    log.warning("%s", text)


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
