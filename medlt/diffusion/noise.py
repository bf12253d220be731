"""The noise schedule, and the conversion between eps, v and x0 predictions.

| symbol | meaning |
|---|---|
| x_t, x0, n | noisy latent, clean latent, unit noise, [B,C,h,w]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n |
| abar | cumulative signal share of a timestep, in [0,1] |
| v | sqrt(abar) n - sqrt(1 - abar) x0 (arXiv 2202.00512) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels a network was trained on, with diffusers' names; the defaults are those of Stable Diffusion.

    `zero_terminal` rescales them so that the last timestep is pure noise (arXiv 2305.08891, Algorithm 1).
    """

    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    zero_terminal: bool = False

    def abar(self) -> Tensor:
        """Return the cumulative signal share at each training timestep: float32 [train_steps]."""
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        ends = self.beta_start**power, self.beta_end**power
        betas = torch.linspace(*ends, self.train_steps, dtype=torch.float64) ** (1 / power)
        root = (1 - betas).cumprod(0).sqrt()
        if self.zero_terminal:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return root.square().float()

    def options(self) -> dict[str, Any]:
        """Return the schedule as keyword arguments of a diffusers scheduler."""
        betas = {"beta_schedule": self.beta_schedule, "beta_start": self.beta_start, "beta_end": self.beta_end}
        zero = {"rescale_betas_zero_snr": True} if self.zero_terminal else {}
        return {**betas, "num_train_timesteps": self.train_steps, **zero}


STABLE_DIFFUSION = NoiseSchedule()


def x0_of(out: Tensor, x_t: Tensor, a: Tensor, prediction: Prediction) -> Tensor:
    """Return the clean estimate of a network's output, given a = abar at the level of x_t (a scalar, or [B,1,1,1])."""
    signal, noise = a.sqrt(), (1 - a).sqrt()
    if prediction == "sample":
        return out
    return (x_t - noise * out) / signal if prediction == "epsilon" else signal * x_t - noise * out


def target_of(x0: Tensor, n: Tensor, a: Tensor, prediction: Prediction) -> Tensor:
    """Return the target of a network with this prediction type: n, v or x0, given a = abar ([B,1,1,1])."""
    if prediction == "sample":
        return x0
    return n if prediction == "epsilon" else a.sqrt() * n - (1 - a).sqrt() * x0
