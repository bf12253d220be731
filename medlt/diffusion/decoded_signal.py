"""Guidance by a signal on decoded images: the gradient of the signal is taken in latents, through the decoder.

Longtail guidance, arXiv 2502.01980, Algorithm 1: estimate the terminal latent z0 from z_t, decode x0 = D(z0), compute a
signal f(x0), bias the denoising estimate with its gradient, and take the sampler's step. The form of the bias (their
Eq. 11) was not available to us. We use

    z0 <- z0 + d_t n g / ||g||,   g = d f(D(z0)) / d z0,   n the latent's norm, norms over each row

with the lengths d_t of `medlt.diffusion.displacement`. The guidance classifier receives decoded clean estimates only,
and no gradient passes through the diffusion network. With `network` it does: g = d f(D(z0(z_t))) / d z_t, as in
universal guidance (arXiv 2302.07121), at the cost of a backward pass of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.diffusion.displacement import Displacement
from medlt.rng import torch_generator
from medlt.types import Denoiser, Guidance, Signal


def decoded_signal(decode: Callable[[Tensor], Tensor], signal: Signal) -> Signal:
    """Return the signal (z0, t) -> signal(decode(z0), t).

    `signal` is a function of images [B,1,H,W]; `decode` must be differentiable.
    """
    return lambda z0, t: signal(decode(z0), t)


def displace_estimate(signal: Signal, by: Displacement, network: bool = False) -> Guidance:
    """Return guidance that moves each clean estimate up the gradient of `signal` (z0, t) -> [B] by the lengths of `by`.

    network: take the gradient with respect to z_t, through the denoiser. Length 0 at t gives the bare denoiser.
    """

    def wrap(denoiser: Denoiser) -> Denoiser:
        def guided(x_t: Tensor, t: int) -> Tensor:
            if by.at(t) == 0:
                return denoiser(x_t, t)
            with torch.enable_grad():
                x_in = x_t.detach().requires_grad_(network)
                z0 = denoiser(x_in, t) if network else denoiser(x_in, t).detach().requires_grad_()
                (g,) = torch.autograd.grad(signal(z0, t).sum(), x_in if network else z0)
            z0 = z0.detach()
            return z0 + by.move(g, z0, t)

        return guided

    return wrap


def average_shifts(signal: Signal, seeds: Sequence[int], n_shifts: int, max_shift: float = 1 / 32) -> Signal:
    """Return the mean of `signal` over `n_shifts` random shifts of the images; with 0, `signal` itself.

    A shift is at most `max_shift` of the image side. It is drawn from the row's seed and the timestep, and repeats the
    border. A gradient that is averaged over small shifts has less adversarial texture.
    """
    if n_shifts == 0:
        return signal

    def averaged(images: Tensor, t: int) -> Tensor:
        values = [signal(_shift(images, [(seed, t, n) for seed in seeds], max_shift), t) for n in range(n_shifts)]
        return torch.stack(values).mean(0)

    return averaged


def _shift(images: Tensor, keys: Sequence[tuple[int, int, int]], max_shift: float) -> Tensor:
    """Return images [B,1,H,W], each shifted by whole pixels drawn from its key."""
    height, width = images.shape[-2:]
    r = max(1, round(max_shift * min(height, width)))
    padded = F.pad(images, (r, r, r, r), mode="replicate")
    corners = [torch.randint(2 * r + 1, (2,), generator=torch_generator("shift", *key)).tolist() for key in keys]
    rows = [row[:, y : y + height, x : x + width] for row, (y, x) in zip(padded, corners, strict=True)]
    return torch.stack(rows)
