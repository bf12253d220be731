"""Signals: scalar fields over clean estimates; larger means rarer.

| symbol | meaning |
|---|---|
| x0(x_t) | clean estimate [B,C,h,w] of the noisy latent x_t |
| s | the timestep to which an estimate is noised |
| d | a distance between two estimates, [B] |
| sg | stop-gradient |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from medlt.rng import noise_like, seed_of
from medlt.types import Denoiser, Signal

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(estimate with gradient [B,...], estimate without) -> [B]."""

Noise: TypeAlias = Callable[[Tensor, int], Tensor]
"""(x [B,...], t) -> unit noise of the shape of x."""


def l2(x0: Tensor, pulled: Tensor) -> Tensor:
    """Return the Euclidean distance of each row, [B]."""
    distance: Tensor = torch.linalg.vector_norm((x0 - pulled).flatten(1), dim=1)
    return distance


def between(features: Callable[[Tensor], Tensor]) -> Distance:
    """Return a Euclidean distance of features [B,D] of latents [B,C,h,w]; the published code uses LPIPS.

    `features` must be differentiable and deterministic, and process each row alone (a network in eval mode).
    """

    def distance(x0: Tensor, pulled: Tensor) -> Tensor:
        with torch.no_grad():
            still = features(pulled)
        return l2(features(x0), still)

    return distance


def own_noise(seeds: Iterable[int], stream: str) -> Noise:
    """Return noise in which a row depends on its seed, the name of the stream and the timestep, not on its batch."""
    whose = [int(seed) for seed in seeds]
    return lambda x, t: noise_like([seed_of(stream, seed, t) for seed in whose], x.shape[1:]).to(x)


def minority(denoiser: Denoiser, noise: Noise, abar: Tensor, t_probe: int, distance: Distance = l2) -> Signal:
    """Return the minority signal L(x_t; s) = d(x0(x_t), sg x0(x_s)), where x_s is x0(x_t) noised to s.

    Um and Ye, arXiv 2407.11555: denoising moves rare content back to the modes, so the distance is large for it. It
    uses one Monte-Carlo sample; `t_probe` is s. The gradient passes through the first estimate only, so the second
    forward pass keeps no graph.
    """

    @torch.no_grad()
    def pulled(x0: Tensor, t: int) -> Tensor:
        a = abar[t_probe].to(x0)
        return denoiser(a.sqrt() * x0 + (1 - a).sqrt() * noise(x0, t), t_probe)

    return lambda x0, t: distance(x0, pulled(x0, t))
