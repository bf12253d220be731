"""Guidance as functions from denoiser to denoiser, in x0 space.

| symbol | meaning |
|---|---|
| x_t | noisy latent [B,C,h,w] at timestep t |
| x0 | its clean estimate |
| abar | cumulative signal share [T]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n |
| a, b | abar at a timestep, and at the next one that the sampler goes to |

References: [1] Ho and Salimans, classifier-free guidance, arXiv 2207.12598. [2] Karras et al., autoguidance, arXiv
2406.02507. [3] Kynkaanniemi et al., guidance in a limited interval, arXiv 2404.07724. [4] Um and Ye, self-guided
minority sampling, arXiv 2407.11555.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import reduce
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from medlt.types import Denoiser, Guidance, InputError, Signal

Schedule: TypeAlias = Literal["variance", "fixed", "switch-off"]
"""How the published shift of the posterior mean varies with the step, see `mean_shifts`."""

Fade: TypeAlias = Callable[[Tensor, int], Tensor]
"""(value of the signal [B], t) -> share of the guidance that each row gets, [B] in [0,1]."""


def compose(*guidances: Guidance) -> Guidance:
    """Apply `guidances` in order, the first innermost; none gives the identity."""
    return lambda denoiser: reduce(lambda inner, guidance: guidance(inner), guidances, denoiser)


def only_at(guidance: Guidance, timesteps: Container[int]) -> Guidance:
    """Guide at `timesteps` only [3], e.g. those that `every_nth` picks."""

    def wrap(denoiser: Denoiser) -> Denoiser:
        guided = guidance(denoiser)
        return lambda x_t, t: (guided if t in timesteps else denoiser)(x_t, t)

    return wrap


def levels(timesteps: Sequence[float]) -> list[int]:
    """The noise levels a sampler visits, as a denoiser is asked: whole timesteps, each once, falling."""
    return list(dict.fromkeys(round(t) for t in timesteps))


def every_nth(timesteps: Sequence[float], every: int, window: tuple[float, float], train_steps: int) -> frozenset[int]:
    """Every `every`-th of the sampler's levels with low <= t / train_steps <= high, from the noisiest on [3, 4].

    A second look between two trained timesteps (kdpm2 has them, and steps by them) goes with the level before it.
    """
    looks: list[list[int]] = []
    for before, t in pairwise([0.5, *timesteps]):
        if t != round(t) and before == round(before):
            looks[-1].append(round(t))
        elif [round(t)] not in looks[-1:]:
            looks.append([round(t)])
    low, high = (share * train_steps for share in window)
    chosen = [look for look in looks if low <= look[0] <= high][::every]
    return frozenset(t for look in chosen for t in look)


def guided_levels(
    timesteps: Sequence[float], every: int, window: tuple[float, float], train_steps: int, name: str
) -> frozenset[int]:
    """`every_nth`, of which there must be one. Raises InputError, for the guide of this `name`, where there is none."""
    if not (found := every_nth(timesteps, every, window, train_steps)):
        first = round(timesteps[0] / train_steps, 2)
        raise InputError(
            f"{name} guide: no step of the sampler, which goes from {first} to 0 in {len(timesteps)}, lies in its "
            f"window {window[0]:.2f}..{window[1]:.2f}; widen the window"
        )
    return found


def contrast(other: Denoiser, weight: float) -> Guidance:
    """other + weight (self - other): other = unconditional is [1], other = a weaker network is [2].

    Weight 1 is the bare denoiser bit for bit, without a call to `other`.
    """

    def wrap(denoiser: Denoiser) -> Denoiser:
        if weight == 1:
            return denoiser
        return lambda x_t, t: torch.lerp(other(x_t, t), denoiser(x_t, t), weight)

    return wrap


def mean_shifts(
    timesteps: Sequence[float], abar: Tensor, schedule: Schedule = "variance", switch: float = 0.5
) -> Callable[[int], float]:
    """How far x0 moves at t so that the ancestral posterior mean moves as far as in [4]; asked at `timesteps` only.

    The mean of q(x_u | x_t, x0) holds x0 with the share c = sqrt(b) (1 - a / b) / (1 - a), and its variance is
    v = (1 - b) (1 - a / b) / (1 - a). "variance" moves the mean by v, so x0 by v / c = (1 - b) / sqrt(b); "fixed" by 1,
    so x0 by 1 / c; "switch-off" is "fixed" while t > switch T, then 0. After the last step nothing is left: b = 1.
    """
    visited = levels(timesteps)
    signal = [*(float(abar[t]) for t in visited), 1.0]
    found: dict[int, float] = {}
    for t, a, b in zip(visited, signal, signal[1:], strict=False):
        fixed = (1 - a) * b**0.5 / (b - a)
        off = schedule == "switch-off" and t <= switch * len(abar)
        found[t] = (1 - b) / b**0.5 if schedule == "variance" else fixed * (not off)
    return found.__getitem__


def ascend(
    signal: Signal,
    scale: float,
    abar: Tensor,
    *,
    through: Denoiser | None = None,
    shift: Callable[[int], float] | None = None,
    fade: Fade | None = None,
) -> Guidance:
    """Push x0 up the gradient of `signal` with respect to x_t, normalised to a largest entry of 1 in each row [4].

    The push is scale x shift(t), x `fade` of the row. Without `shift` it is (1 - abar) / sqrt(abar): by Tweedie's
    formula what a score shift of one does. The signal is of the estimate of `through`, else of the guided denoiser's
    own; where the two are one object, one forward serves both. Scale 0, or shift 0 at t, is the bare denoiser.
    """
    far = shift or (lambda t: float((1 - abar[t]) / abar[t].sqrt()))

    def wrap(denoiser: Denoiser) -> Denoiser:
        asked = denoiser if through is None else through

        def guided(x_t: Tensor, t: int) -> Tensor:
            if (length := scale * far(t)) == 0:
                return denoiser(x_t, t)
            x0, value, g = _climb(signal, asked, x_t, t)
            push = length * g if fade is None else length * _rows(fade(value, t), g) * g
            alone = asked is not denoiser or x_t.requires_grad  # a guide outside may want the graph, which _climb cuts
            return (denoiser(x_t, t) if alone else x0) + push

        return denoiser if scale == 0 else guided

    return wrap


def _climb(signal: Signal, denoiser: Denoiser, x_t: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """The estimate, its signal [B] and the normalised gradient, all cut from the graph. Weights get no gradient."""
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        x0 = denoiser(x_t, t)
        value = signal(x0, t)
    if not value.requires_grad:  # flat, such as the JEPA score of a linear network
        return x0.detach(), value, torch.zeros_like(x_t)
    (g,) = torch.autograd.grad(value, x_t, torch.ones_like(value), materialize_grads=True)
    largest = g.flatten(1).abs().amax(1).clamp_min(1e-12)
    return x0.detach(), value.detach(), g / _rows(largest, g)


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """One number a row, [B], to be multiplied with `like` [B,...]."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
