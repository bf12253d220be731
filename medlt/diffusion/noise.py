"""The noise schedule, and the conversion between eps, v and x0 predictions.

| symbol | meaning |
|---|---|
| x_t, x0, n | noisy latent, clean latent, unit noise, [B,C,h,w]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n |
| abar | cumulative signal share of a timestep, in [0,1] |
| v | sqrt(abar) n - sqrt(1 - abar) x0 (arXiv 2202.00512) |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from medlt.types import InputError

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]
NEARLY_ZERO = 2.0**-24
"""The abar that diffusers' schedulers step from where a schedule ends in pure noise."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels a network was trained on, with diffusers' names; the defaults are those of Stable Diffusion.

    `zero_terminal` rescales them so that the last timestep is pure noise (arXiv 2305.08891, Algorithm 1). `shift` then
    divides every SNR by its square (`resolution_shift`). Raises InputError for a shift that is not positive.
    """

    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    zero_terminal: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise InputError(f"noise schedule: shift is {self.shift}; give a number above 0, 1 for no shift")

    def abar(self) -> Tensor:
        """Return the cumulative signal share at each training timestep: float32 [train_steps]."""
        return self._abar().float()

    def _abar(self) -> Tensor:
        """Return the same in float64."""
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        ends = self.beta_start**power, self.beta_end**power
        betas = torch.linspace(*ends, self.train_steps, dtype=torch.float64) ** (1 / power)
        root = (1 - betas).cumprod(0).sqrt()
        if self.zero_terminal:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        signal = root.square()
        return signal / (signal + (1 - signal) * self.shift**2)

    def options(self) -> dict[str, Any]:
        """Return the schedule as keyword arguments of a diffusers scheduler."""
        named = {"beta_schedule": self.beta_schedule, "beta_start": self.beta_start, "beta_end": self.beta_end}
        betas: dict[str, Any] = named if self.shift == 1 else {"trained_betas": betas_of(self._abar())}
        zero = {"rescale_betas_zero_snr": True} if self.zero_terminal else {}
        return {**betas, "num_train_timesteps": self.train_steps, **zero}

    def options_without_zero(self) -> dict[str, Any]:
        """Return the same for a scheduler that cannot have abar 0: the last is `NEARLY_ZERO`, as in its siblings."""
        if not self.zero_terminal:
            return self.options()
        return {"trained_betas": betas_of(self._abar().clamp_min(NEARLY_ZERO)), "num_train_timesteps": self.train_steps}


def betas_of(abar: Tensor) -> list[float]:
    """Return the betas of cumulative signal shares [T]: 1 - abar_t / abar_(t-1), with abar 1 before the first."""
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    return [float(beta) for beta in 1 - abar / before]


def resolution_shift(side: float, reference: int = 64) -> float:
    """Return the shift of a schedule for latents of this side, if the schedule was made for those of `reference`.

    Neighbouring pixels are averaged alike, so the noise that hides an image grows with its side: the log SNR changes by
    2 log(reference / side) (arXiv 2301.11093, eq. 4; equal to the timestep shift sqrt(m / n) of arXiv 2403.03206,
    eq. 23). Stable Diffusion's schedule was made for 64 px latents.
    """
    return side / reference


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
