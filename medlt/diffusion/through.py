"""Guidance by what a decoded image shows: a signal over images, climbed in latents through the decoder.

Longtail guidance, arXiv 2502.01980, Algorithm 1: estimate z0 from z_t, decode x0 = D(z0), take the gradient of a signal
f(x0), bias the denoising estimate with it. How it is biased (their Eq. 11) was not available to us; our completion:

    z0 <- z0 + w ||z0|| g / ||g||,   g = d f(D(z0)) / d z0,   norms over each row

The predictor sees decoded clean estimates only, and no gradient passes the diffusion network, unless it is asked to:
then g = d f(D(z0(z_t))) / d z_t, as in universal guidance (arXiv 2302.07121), at the price of a backward pass of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.chance import generator
from medlt.types import Denoiser, Guidance, Signal


def seen(decode: Callable[[Tensor], Tensor], look: Signal) -> Signal:
    """The signal (z0, t) -> look(decode(z0), t): `look` is over images [B,1,H,W], `decode` differentiable."""
    return lambda z0, t: look(decode(z0), t)


def matched(g: Tensor, z: Tensor) -> Tensor:
    """g / ||g|| * ||z|| for each row; 0 where g is 0 or not finite."""
    length = torch.linalg.vector_norm(g.flatten(1), dim=1)
    scale = torch.linalg.vector_norm(z.flatten(1), dim=1) / length
    usable = (length > 0) & scale.isfinite()
    over = (-1, *[1] * (g.ndim - 1))
    return torch.where(usable.view(over), g * scale.view(over), 0.0)


def climb(signal: Signal, weight: float, network: bool = False) -> Guidance:
    """Move each row's clean estimate by `weight` times its own norm, up the gradient of `signal` (z0, t) -> [B].

    network: take the gradient with respect to z_t, through the denoiser. Weight 0 is the bare denoiser bit for bit.
    """

    def wrap(denoiser: Denoiser) -> Denoiser:
        def guided(x_t: Tensor, t: int) -> Tensor:
            with torch.enable_grad():
                asked = x_t.detach().requires_grad_(network)
                z0 = denoiser(asked, t) if network else denoiser(asked, t).detach().requires_grad_()
                (g,) = torch.autograd.grad(signal(z0, t).sum(), asked if network else z0)
            z0 = z0.detach()
            return z0 + weight * matched(g, z0)

        return denoiser if weight == 0 else guided

    return wrap


def shifted(look: Signal, seeds: Sequence[int], shifts: int, reach: float = 1 / 32) -> Signal:
    """The mean of `look` over images moved by up to `reach` of their side, `shifts` times; 0 times: as they are.

    Each row's moves are drawn from its own seed and the timestep; what comes in repeats the border. A gradient that
    holds under small moves is less of an adversarial texture.
    """
    if shifts == 0:
        return look

    def averaged(images: Tensor, t: int) -> Tensor:
        moved = [look(_moved(images, [(seed, t, n) for seed in seeds], reach), t) for n in range(shifts)]
        return torch.stack(moved).mean(0)

    return averaged


def _moved(images: Tensor, keys: Sequence[tuple[int, int, int]], reach: float) -> Tensor:
    """Images [B,1,H,W], each moved by whole pixels drawn from its key."""
    height, width = images.shape[-2:]
    r = max(1, round(reach * min(height, width)))
    wide = F.pad(images, (r, r, r, r), mode="replicate")
    places = [torch.randint(2 * r + 1, (2,), generator=generator("shift", *key)).tolist() for key in keys]
    rows = [row[:, y : y + height, x : x + width] for row, (y, x) in zip(wide, places, strict=True)]
    return torch.stack(rows)
