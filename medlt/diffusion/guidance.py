"""Guidance as functions from denoiser to denoiser, in x0 space.

| symbol | meaning |
|---|---|
| x_t | noisy latent [B,C,h,w] at timestep t |
| x0 | its clean estimate |
| abar | cumulative signal share [T]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n |

References: [1] Ho and Salimans, classifier-free guidance, arXiv 2207.12598. [2] Karras et al., autoguidance, arXiv
2406.02507. [3] Kynkaanniemi et al., guidance in a limited interval, arXiv 2404.07724. [4] Um and Ye, minority
guidance, arXiv 2301.12334.
"""

from __future__ import annotations

from collections.abc import Container
from functools import reduce

import torch
from torch import Tensor

from medlt.types import Denoiser, Guidance, Signal


def compose(*guidances: Guidance) -> Guidance:
    """Apply `guidances` in order, the first innermost; none gives the identity."""
    return lambda denoiser: reduce(lambda inner, guidance: guidance(inner), guidances, denoiser)


def only_at(guidance: Guidance, timesteps: Container[int]) -> Guidance:
    """Guide at `timesteps` only [3], e.g. `only_at(g, set(scheduler.timesteps[:20:5].tolist()))`."""

    def wrap(denoiser: Denoiser) -> Denoiser:
        guided = guidance(denoiser)
        return lambda x_t, t: (guided if t in timesteps else denoiser)(x_t, t)

    return wrap


def contrast(other: Denoiser, weight: float) -> Guidance:
    """other + weight (self - other): other = unconditional is [1], other = a weaker network is [2].

    Weight 1 is the bare denoiser bit for bit, without a call to `other`.
    """

    def wrap(denoiser: Denoiser) -> Denoiser:
        if weight == 1:
            return denoiser
        return lambda x_t, t: torch.lerp(other(x_t, t), denoiser(x_t, t), weight)

    return wrap


def ascend(signal: Signal, scale: float, abar: Tensor) -> Guidance:
    """Push x0 up the gradient of `signal` with respect to x_t, normalised to a largest entry of 1 in each row [4].

    By Tweedie's formula a score shift g moves the estimate by (1 - abar) / sqrt(abar) g. Scale 0 is the bare denoiser.
    """

    def wrap(denoiser: Denoiser) -> Denoiser:
        def guided(x_t: Tensor, t: int) -> Tensor:
            with torch.enable_grad():
                x_t = x_t.detach().requires_grad_()
                x0 = denoiser(x_t, t)
                (g,) = torch.autograd.grad(signal(x0, t).sum(), x_t)
            g = g / g.abs().amax(dim=tuple(range(1, g.ndim)), keepdim=True).clamp_min(1e-12)
            return x0.detach() + scale * (1 - abar[t]) / abar[t].sqrt() * g

        return denoiser if scale == 0 else guided

    return wrap
