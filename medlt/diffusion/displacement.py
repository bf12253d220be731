"""Displacement: the strength of guidance, as the move of the finished latent that it causes.

| symbol | meaning |
|---|---|
| x_t, x0 | noisy latent [B,...] at timestep t, its clean estimate |
| abar | cumulative signal share [T]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n |
| d_t | length of the guided move of the estimate at t, as a share of the latent's norm |
| G_t | gain: move of the finished latent per unit move of the estimates at t |

A sampler is linear in its estimates. With a linear denoiser the finished latent moves by sum_t G_t d_t if the moves
have one direction, so moves d_t = c m_t of a chosen form m_t displace it by the share s for c = s / sum_t G_t m_t,
whatever the scheduler, the number of steps, or which of them are guided. The reference denoiser is that of latents with
unit Gaussian entries, x0 = sqrt(abar) x_t. For it, a step of DDIM from a to b has

    G = (sqrt(b) - sqrt(a (1 - b) / (1 - a))) prod of (sqrt(a' b') + sqrt((1 - a') (1 - b'))) over the later steps

and a step of DDPM G = sqrt(b) (1 - a/b) / (1 - a) prod of sqrt(a' / b'), both times sqrt(abar) of the last estimate.
Schedulers that combine several estimates have longer forms, so the sum is measured: `reach` runs the scheduler itself,
once with the moves and once without. A network differs from its reference: it undoes part of a move, or goes on in its
direction, and directions differ from step to step. `response` of a guide is the measured ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from medlt.diffusion.sampler import Start, sample
from medlt.diffusion.schedulers import begin
from medlt.rng import noise_like
from medlt.types import InputError

SMALLEST = 1e-9
"""Below this total gain, guided moves are lost before the end."""
_KEPT, _NUMBERS = 64, 4096  # settings that are remembered; numbers that the norm is measured on


@dataclass(frozen=True)
class Reach:
    """How far moves m_t of the estimates reach under the reference denoiser.

    gain: sum_t G_t m_t, the move of the finished latent; norm: of the finished latent, as a share of that of unit
    Gaussian entries, which few deterministic steps make smaller than 1.
    """

    gain: float
    norm: float


def reach(scheduler: Callable[[], Any], timesteps: Sequence[float], moves: Mapping[int, float], abar: Tensor) -> Reach:
    """Return how far moves (t -> m_t) reach under the reference denoiser.

    scheduler: returns a new one; timesteps: of the denoiser's evaluations, falling; abar [T]: of the network.
    """
    return _reach(_Settings(scheduler(), scheduler, tuple(timesteps), tuple(sorted(moves.items())), abar))


class _Settings:
    """What a total gain depends on, as a key of a cache: the scheduler by its class and settings."""

    def __init__(
        self, built: Any, scheduler: Callable[[], Any], timesteps: tuple[float, ...],
        moves: tuple[tuple[int, float], ...], abar: Tensor,
    ) -> None:  # fmt: skip
        self.scheduler, self.timesteps, self.moves, self.abar = scheduler, timesteps, moves, abar
        settings = repr(sorted((name, str(value)) for name, value in built.config.items()))
        signal = abar.cpu().double().numpy().tobytes()  # the settings print long lists of betas in part only
        self._key = type(built).__name__, built.num_inference_steps, settings, timesteps, moves, signal

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Settings) and self._key == other._key


@lru_cache(_KEPT)
def _reach(of: _Settings) -> Reach:
    root, moves = of.abar.cpu().double().sqrt(), dict(of.moves)

    def reference(x: Tensor, t: int) -> Tensor:
        moved = torch.tensor([[moves.get(t, 0.0)], [0.0]], dtype=x.dtype)
        return root[t] * x + moved

    built, timesteps = of.scheduler(), list(of.timesteps)
    begin(built, timesteps)
    noise = noise_like([0], (_NUMBERS,)).double()
    start = noise / built.scale_model_input(torch.ones((), dtype=noise.dtype), timesteps[0])
    end = sample(reference, Start(start.repeat(2, 1), timesteps), built, [0, 0])  # both rows draw the same noise
    norms = [float(torch.linalg.vector_norm(x)) for x in (end[1], noise)]
    return Reach(float((end[0] - end[1]).mean()), norms[0] / norms[1])


@dataclass(frozen=True)
class Displacement:
    """Moves of estimates. lengths: t -> d_t; abar [T]: of the network; cap: limit of one move, as the same share."""

    lengths: Mapping[int, float]
    abar: Tensor
    cap: float = math.inf

    def at(self, t: int) -> float:
        """Return the length of the move at t, a share of the latent's norm; 0 where nothing moves."""
        return min(self.lengths.get(t, 0.0), self.cap)

    @property
    def capped(self) -> bool:
        """Whether some move is cut by the cap."""
        return any(length > self.cap for length in self.lengths.values())

    def move(self, g: Tensor, x0: Tensor, t: int) -> Tensor:
        """Return the move of estimates x0 [B,...] along the directions g, each row by its own norms."""
        return self.at(t) * per_row(expected_norm(x0, float(self.abar[t])), g) * unit(g)


def displacement(
    strength: float,
    form: Mapping[int, float],
    scheduler: Callable[[], Any],
    timesteps: Sequence[float],
    abar: Tensor,
    cap: float = math.inf,
) -> Displacement:
    """Return the moves, of lengths in the proportions of `form` (t -> m_t), that displace the finished latent.

    strength: displacement as a share of the finished latent's norm, under the reference denoiser. Raises InputError if
    no move of this form reaches the finished latent.
    """
    whole = reach(scheduler, timesteps, form, abar)
    if whole.gain < SMALLEST:
        raise InputError("no guided step moves the finished latent; widen the window, or use another weighting")
    return Displacement({t: strength * whole.norm / whole.gain * m for t, m in form.items()}, abar, cap)


def expected_norm(x0: Tensor, abar: float) -> Tensor:
    """Return the expected norm of each finished latent, [B], from its estimate at a timestep with this abar.

    For unit Gaussian entries the posterior variance of each is 1 - abar.
    """
    flat = x0.flatten(1)
    return (flat.square().sum(1) + (1 - abar) * flat.shape[1]).sqrt()


def unit(g: Tensor) -> Tensor:
    """Return g / ||g|| for each row of g [B,...]; 0 if g is 0 or not finite."""
    length = torch.linalg.vector_norm(g.flatten(1), dim=1)
    usable = (length > 0) & length.isfinite()
    return torch.where(per_row(usable, g), g / per_row(length, g), 0.0)


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """Return one value per row, [B], in a shape that broadcasts over `like` [B,...]."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def realised(guided: Tensor, plain: Tensor) -> Tensor:
    """Return the displacement of each finished latent [B,...] from its unguided twin, a share of the latter's norm."""
    moved, whole = (torch.linalg.vector_norm(z.flatten(1).double(), dim=1) for z in (guided - plain, plain))
    share: Tensor = moved / whole
    return share
