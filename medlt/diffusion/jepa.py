"""The JEPA score: how likely a feature network holds an image to be, from how much it stretches space there.

| symbol | meaning |
|---|---|
| f | feature network, latents [B,C,h,w] -> [B,D] |
| J | its Jacobian at x, [D,N] with N = C h w |
| sigma_k | singular values of J, falling |
| r | directions sketched: `top` + `extra`, at most min(D, N) |

A network whose features are spread like a Gaussian (as joint-embedding training asks) has a density of inputs
p(x) ~ prod_k sigma_k, so score(x) = sum_k log sigma_k is a log-density up to a constant [1]. A low score is rare.

References: [1] Balestriero et al., arXiv 2510.05949. [2] Park and Um, arXiv 2605.24631: guidance by it, made
affordable by a randomised low-rank SVD whose subspace is held constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medlt.diffusion.signals import Noise
from medlt.types import Signal

Features = Callable[[Tensor], Tensor]
SMALLEST = 1e-6  # singular values below count as this, without gradient


def jepa_score(features: Features, x: Tensor, sketch: Tensor, top: int = 3, powers: int = 2) -> Tensor:
    """sum of log sigma_k over the `top` largest singular values of J at x [B,...]: [B], with a graph to x.

    `sketch` [B,r,...] holds random directions in the space of x, r >= top unless J is smaller; `powers` subspace
    iterations sharpen what they find [2]. With r = D the subspace is everything, and the score exact. `features` must
    be twice differentiable and see each row alone.
    """
    with torch.no_grad():
        count = min(sketch.shape[1], features(x[:1]).shape[1], x[0].numel())
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        many = x.repeat_interleave(count, 0)  # a direction a row, so that one pass serves all of them
        out = features(many)
        span = _subspace(out, many, sketch[:, :count], powers)
        stretched = _back(out, many, span, graph=True).reshape(len(x), count, -1)  # Q^T J, [B,r,N]
        sigma = _each(torch.linalg.svdvals, stretched)
        score: Tensor = sigma[:, :top].clamp_min(SMALLEST).log().sum(1)
        return score


def jepa(features: Features, noise: Noise, top: int = 3, extra: int = 2, powers: int = 2) -> Signal:
    """Minus the JEPA score: larger means rarer. `noise` draws each row's sketch, see `signals.own_noise`."""

    def signal(x0: Tensor, t: int) -> Tensor:
        like = x0.detach().unsqueeze(1).expand(-1, top + extra, *x0.shape[1:])
        return -jepa_score(features, x0, noise(like, t), top, powers)

    return signal


def _subspace(out: Tensor, many: Tensor, sketch: Tensor, powers: int) -> Tensor:
    """The randomised range finder: orthonormal directions [B r, D] that hold most of J's range, cut from the graph."""
    u = torch.zeros_like(out, requires_grad=True)
    pulled = _back(out, many, u, graph=True)  # J^T u; its derivative along u, applied to v, is J v
    directions = sketch.flatten(0, 1)
    for turn in range(powers + 1):
        pushed = _back(pulled, u, directions).reshape(*sketch.shape[:2], -1)
        span = _each(lambda rows: torch.linalg.qr(rows.T)[0].T, pushed).flatten(0, 1)
        if turn < powers:
            directions = _back(out, many, span)
    return span


def _each(decompose: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """One matrix at a time: LAPACK's last bits depend on how a matrix lies in memory, so in a batch on its place."""
    return torch.stack([decompose(matrix) for matrix in matrices])


def _back(out: Tensor, x: Tensor, along: Tensor, graph: bool = False) -> Tensor:
    """The derivative of out in x, transposed, applied to `along` (shaped as out): shaped as x."""
    (found,) = torch.autograd.grad(out, x, along, retain_graph=True, create_graph=graph, materialize_grads=True)
    return found
