"""The JEPA score: a log-density of images from the Jacobian of a feature network.

| symbol | meaning |
|---|---|
| f | feature network, latents [B,C,h,w] -> [B,D] |
| J | its Jacobian at x, [D,N] with N = C h w |
| sigma_k | singular values of J, decreasing |
| r | number of sketched directions: `top` + `extra`, at most min(D, N) |

If the features of a network have a Gaussian distribution, as in joint-embedding training, the density of its inputs is
p(x) ~ prod_k sigma_k. So score(x) = sum_k log sigma_k is a log-density up to a constant [1]. A low score means rare.

References: [1] Balestriero et al., arXiv 2510.05949. [2] Park and Um, arXiv 2605.24631: guidance by this score, by a
randomised low-rank SVD with a constant subspace.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medlt.diffusion.signals import Noise
from medlt.types import Signal

Features = Callable[[Tensor], Tensor]
SMALLEST = 1e-6  # lower bound of singular values; below it the gradient is 0


def jepa_score(features: Features, x: Tensor, sketch: Tensor, top: int = 3, powers: int = 2) -> Tensor:
    """Return the sum of log sigma_k over the `top` largest singular values of J at x [B,...]: [B], with a graph to x.

    `sketch` [B,r,...] contains random directions in the space of x, r >= top unless J is smaller. `powers` subspace
    iterations improve their accuracy [2]. With r = D the subspace is complete and the score exact. `features` must be
    twice differentiable and treat each row alone.
    """
    with torch.no_grad():
        count = min(sketch.shape[1], features(x[:1]).shape[1], x[0].numel())
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        many = x.repeat_interleave(count, 0)  # one direction per row, so that one pass serves all of them
        out = features(many)
        span = _subspace(out, many, sketch[:, :count], powers)
        stretched = _back(out, many, span, graph=True).reshape(len(x), count, -1)  # Q^T J, [B,r,N]
        sigma = _each(torch.linalg.svdvals, stretched)
        score: Tensor = sigma[:, :top].clamp_min(SMALLEST).log().sum(1)
        return score


def jepa(features: Features, noise: Noise, top: int = 3, extra: int = 2, powers: int = 2) -> Signal:
    """Return the signal of minus the JEPA score: larger means rarer. `noise` draws the sketches, see `row_noise`."""

    def signal(x0: Tensor, t: int) -> Tensor:
        like = x0.detach().unsqueeze(1).expand(-1, top + extra, *x0.shape[1:])
        return -jepa_score(features, x0, noise(like, t), top, powers)

    return signal


def _subspace(out: Tensor, many: Tensor, sketch: Tensor, powers: int) -> Tensor:
    """Return orthonormal directions [B r, D] that span most of J's range, detached (randomised range finder)."""
    u = torch.zeros_like(out, requires_grad=True)
    pulled = _back(out, many, u, graph=True)  # J^T u; its derivative along u, applied to v, is J v
    directions = sketch.flatten(0, 1)
    for power in range(powers + 1):
        pushed = _back(pulled, u, directions).reshape(*sketch.shape[:2], -1)
        span = _each(lambda rows: torch.linalg.qr(rows.T)[0].T, pushed).flatten(0, 1)
        if power < powers:
            directions = _back(out, many, span)
    return span


def _each(decompose: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Decompose one matrix at a time, because LAPACK's last bits depend on the position of a matrix in memory."""
    return torch.stack([decompose(matrix) for matrix in matrices])


def _back(out: Tensor, x: Tensor, along: Tensor, graph: bool = False) -> Tensor:
    """Return the transposed Jacobian of out in x applied to `along` (in the shape of out), in the shape of x."""
    (product,) = torch.autograd.grad(out, x, along, retain_graph=True, create_graph=graph, materialize_grads=True)
    return product
