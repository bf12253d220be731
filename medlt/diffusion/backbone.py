"""A backbone: a network of any family with its conditioner, and the denoiser made from both.

A family (Stable Diffusion, a label-conditional UNet, a transformer) supplies a network and a conditioner. Training,
guidance, sampling and all methods use a `Backbone` and do not depend on the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule, Prediction, x0_of
from medlt.types import Denoiser, InputError

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

    def guided(self, condition: Tensor, weight: float) -> Denoiser:
        """Return the denoiser with classifier-free guidance (arXiv 2207.12598): null + weight (conditional - null).

        One forward pass computes both estimates in 2B rows. Weight 1 gives the conditional denoiser bit for bit, and
        weight 0 the unconditional one; each of them computes B rows only.
        """
        if weight in (0, 1):
            return self.denoiser(condition if weight else None)
        both = self.denoiser(torch.cat([self._null(len(condition)).to(condition), condition]))

        def denoise(x_t: Tensor, t: int) -> Tensor:
            null, conditional = both(torch.cat([x_t, x_t]), t).chunk(2)
            return torch.lerp(null, conditional, weight)

        return denoise

    def _null(self, rows: int) -> Tensor:
        null = self.condition.null
        return null.expand(rows, *null.shape)
