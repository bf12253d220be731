"""A backbone: a network of any family with its conditioner, and the denoiser made from both.

A family (Stable Diffusion, a label-conditional UNet, a transformer) supplies a network and a conditioner. Training,
guidance, sampling and all methods use a `Backbone` and do not depend on the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule, Prediction, x0_of
from medlt.types import Denoiser, InputError

EVERYWHERE = (0.0, 1.0)
"""The interval of all timesteps, as shares of the trained ones."""

About: TypeAlias = Mapping[str, Any]
"""Attributes of an image: `view`, `sex`, `age` (years). A missing key, None, NaN or "" means unknown."""


class Conditioner(Protocol):
    """Function from labels and attributes to the conditions of a network. It is deterministic, row by row."""

    @property
    def digest(self) -> str:
        """Digest of the mapping from labels to conditions."""
        ...

    @property
    def null(self) -> Tensor:
        """The null condition, one row [...]: the condition of the unconditional estimate."""
        ...

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """Return conditions [B,...] of label vectors [B,K] (1, 0, soft, NaN = unknown).

        `about` is empty or has one entry per row.
        """
        ...


@dataclass(frozen=True)
class Backbone:
    """A network (x_t [B,C,h,w], t [B] int64, condition [B,...]) -> prediction [B,C,h,w], with its conditioner.

    `space` names the latents that the network was trained on: the codec's own (Stable Diffusion) or standardised ones.
    `digest` names weights, settings and conditioner.
    """

    network: nn.Module
    condition: Conditioner
    prediction: Prediction
    channels: int
    digest: str
    space: Literal["standardised", "codec"] = "standardised"
    noise: NoiseSchedule = STABLE_DIFFUSION

    @property
    def device(self) -> torch.device:
        """The device of the network. Latents and conditions are best kept on it during sampling."""
        first = next(self.network.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def __post_init__(self) -> None:
        if self.prediction == "epsilon" and self.noise.zero_terminal:
            raise InputError("epsilon prediction cannot start from pure noise (zero terminal SNR); use v_prediction")

    def denoiser(self, condition: Tensor | None = None) -> Denoiser:
        """Return the denoiser under these conditions [B,...], or the unconditional one."""
        abar = self.noise.abar()

        def denoise(x_t: Tensor, t: int) -> Tensor:
            rows = self._null(len(x_t)) if condition is None else condition
            steps = torch.full((len(x_t),), t, device=x_t.device)
            return x0_of(self.network(x_t, steps, rows), x_t, abar[t].to(x_t), self.prediction)

        return denoise

    def guided(self, condition: Tensor, weight: float, interval: tuple[float, float] = EVERYWHERE) -> Denoiser:
        """Return the denoiser with classifier-free guidance at the timesteps of `interval`, see `ClassifierFree`.

        Weight 1 gives the conditional denoiser bit for bit, and weight 0 at all timesteps the unconditional one; each
        of them computes B rows only.
        """
        if weight == 1 or (weight == 0 and interval == EVERYWHERE):
            return self.denoiser(condition if weight else None)
        return ClassifierFree(self, condition, self.denoiser(condition), weight, interval)

    def _null(self, rows: int) -> Tensor:
        null = self.condition.null
        return null.expand(rows, *null.shape)


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """A `Denoiser` with classifier-free guidance (arXiv 2207.12598) in a limited interval (arXiv 2404.07724).

    The estimate is null + weight (conditional - null) if low T <= t <= high T, with T trained timesteps, and that of
    `conditional` elsewhere. Inside, one forward pass computes both estimates in 2B rows; outside, the unconditional
    network is not called. Only timesteps below T exist, so the interval (1, 1) is empty.
    """

    backbone: Backbone
    condition: Tensor
    conditional: Denoiser
    weight: float
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise InputError(f"guidance_interval is {low} to {high}; give two shares with 0 <= low <= high <= 1")

    @cached_property
    def _both(self) -> Denoiser:
        """Return the denoiser of 2B rows: without conditions, then with them."""
        null = self.backbone.condition.null
        rows = null.expand(len(self.condition), *null.shape).to(self.condition)
        return self.backbone.denoiser(torch.cat([rows, self.condition]))

    def active(self, t: int) -> bool:
        """Return whether timestep t lies in the interval."""
        low, high = (share * self.backbone.noise.train_steps for share in self.interval)
        return low <= t <= high

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        if not self.active(t):
            return self.conditional(x_t, t)
        null, conditional = self._both(torch.cat([x_t, x_t]), t).chunk(2)
        return torch.lerp(null, conditional, self.weight)

    def around(self, conditional: Tensor, x_t: Tensor, t: int) -> Tensor:
        """Return the guided estimate from the estimate of `conditional`, which a caller has already: B rows or none."""
        if not self.active(t):
            return conditional
        return torch.lerp(self.backbone.denoiser()(x_t, t), conditional, self.weight)
