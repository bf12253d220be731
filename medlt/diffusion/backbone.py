"""A backbone: one network of any family, the way it is told what to make, and the step from both to a denoiser.

A family (Stable Diffusion, a label-conditional UNet, a transformer) supplies a network and a conditioner; training,
guidance, sampling and every method see a `Backbone` and never ask which family it is.
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
"""What else is known of an image: `view`, `sex`, `age` (years). A missing key, None, NaN or "" is unknown."""


class Conditioner(Protocol):
    """From labels and circumstances to what a network is told; all chance-free, a row a function of the row."""

    @property
    def digest(self) -> str:
        """Names how labels become conditions."""
        ...

    @property
    def null(self) -> Tensor:
        """What a network is told when nothing is said, one row [...]: the condition of the unconditional estimate."""
        ...

    def __call__(self, labels: Tensor, about: Sequence[About] = ()) -> Tensor:
        """Conditions [B,...] of label vectors [B,K] (1, 0, soft, NaN = unknown); `about` is empty or one a row."""
        ...


@dataclass(frozen=True)
class Backbone:
    """network(x_t [B,C,h,w], t [B] int64, condition [B,...]) -> its prediction [B,C,h,w], and how to speak to it.

    `space` says which latents it was trained on: the codec's own (Stable Diffusion) or standardised ones. `digest`
    names weights, settings and conditioner.
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
        """Where the network lives, and where latents and conditions are best kept while it is asked."""
        first = next(self.network.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def __post_init__(self) -> None:
        if self.prediction == "epsilon" and self.noise.zero_terminal:
            raise InputError("epsilon says nothing of an image that is all noise (zero terminal SNR); use v_prediction")

    def denoiser(self, condition: Tensor | None = None) -> Denoiser:
        """x0 estimates under these conditions [B,...], or the unconditional ones."""
        abar = self.noise.abar()

        def denoise(x_t: Tensor, t: int) -> Tensor:
            said = self._null(len(x_t)) if condition is None else condition
            steps = torch.full((len(x_t),), t, device=x_t.device)
            return x0_of(self.network(x_t, steps, said), x_t, abar[t].to(x_t), self.prediction)

        return denoise

    def guided(self, condition: Tensor, weight: float) -> Denoiser:
        """Classifier-free guidance (arXiv 2207.12598) in one forward of 2B rows: null + weight (conditional - null).

        Weight 1 is the conditional denoiser bit for bit, weight 0 the unconditional one, each without the other half.
        """
        if weight in (0, 1):
            return self.denoiser(condition if weight else None)
        both = self.denoiser(torch.cat([self._null(len(condition)).to(condition), condition]))

        def denoise(x_t: Tensor, t: int) -> Tensor:
            null, said = both(torch.cat([x_t, x_t]), t).chunk(2)
            return torch.lerp(null, said, weight)

        return denoise

    def _null(self, rows: int) -> Tensor:
        null = self.condition.null
        return null.expand(rows, *null.shape)
