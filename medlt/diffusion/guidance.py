"""Guidance: functions from denoiser to denoiser, in x0 space.

| symbol | meaning |
|---|---|
| x_t | noisy latent [B,C,h,w] at timestep t |
| x0 | its clean estimate |
| abar | cumulative signal share [T]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n |
| a, b | abar at a timestep, and at the next one of the sampler |

References: [1] Ho and Salimans, classifier-free guidance, arXiv 2207.12598. [2] Karras et al., autoguidance, arXiv
2406.02507. [3] Kynkaanniemi et al., guidance in a limited interval, arXiv 2404.07724. [4] Um and Ye, self-guided
minority sampling, arXiv 2407.11555. [5] Lugmayr et al., RePaint, arXiv 2201.09865. [6] Zhang et al., LeFusion, arXiv
2403.14066.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import reduce
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from medlt.diffusion.backbone import ClassifierFree
from medlt.diffusion.displacement import Displacement, per_row
from medlt.types import Denoiser, Guidance, InputError, Signal

Weighting: TypeAlias = Literal["variance", "fixed", "switch-off"]
"""Dependence of the published shift of the posterior mean on the step, see `mean_shifts`."""

Fade: TypeAlias = Callable[[Tensor, int], Tensor]
"""Function (value of the signal [B], t) -> factor of the guidance of each row, [B] in [0,1]."""


def compose(*guidances: Guidance) -> Guidance:
    """Apply `guidances` in order, the first innermost. Without any, return the identity."""
    return lambda denoiser: reduce(lambda inner, guidance: guidance(inner), guidances, denoiser)


def only_at(guidance: Guidance, timesteps: Container[int]) -> Guidance:
    """Apply the guidance at `timesteps` only [3], for example those of `every_nth`."""

    def wrap(denoiser: Denoiser) -> Denoiser:
        guided = guidance(denoiser)
        return lambda x_t, t: (guided if t in timesteps else denoiser)(x_t, t)

    return wrap


def keep(mask: Tensor, latent: Tensor) -> Guidance:
    """Return guidance whose estimate is `latent` [B,C,h,w] where `mask`, bool [B,1,h,w], is true [5, 6].

    From a start of the same latent with noise, a sampler without noise of its own passes through the latent with that
    noise at each level there, and the last estimate is the latent bit for bit. Compose it last, outermost.
    """
    return lambda denoiser: lambda x_t, t: torch.where(mask, latent, denoiser(x_t, t))


def levels(timesteps: Sequence[float]) -> list[int]:
    """Return the noise levels of a sampler as the denoiser receives them: whole timesteps, each once, decreasing."""
    return list(dict.fromkeys(round(t) for t in timesteps))


def every_nth(timesteps: Sequence[float], every: int, window: tuple[float, float], train_steps: int) -> frozenset[int]:
    """Return every `every`-th level of the sampler with low <= t / train_steps <= high, from the noisiest on [3, 4].

    A second evaluation between two trained timesteps, as kdpm2 makes, belongs to the level before it.
    """
    groups: list[list[int]] = []
    for before, t in pairwise([0.5, *timesteps]):
        if t != round(t) and before == round(before):
            groups[-1].append(round(t))
        elif [round(t)] not in groups[-1:]:
            groups.append([round(t)])
    low, high = (share * train_steps for share in window)
    chosen = [group for group in groups if low <= group[0] <= high][::every]
    return frozenset(t for group in chosen for t in group)


def guided_levels(
    timesteps: Sequence[float], every: int, window: tuple[float, float], train_steps: int, name: str
) -> frozenset[int]:
    """Return the levels of `every_nth`. Raises InputError, for the guide of this `name`, if there is none."""
    if not (guided := every_nth(timesteps, every, window, train_steps)):
        first = round(timesteps[0] / train_steps, 2)
        raise InputError(
            f"{name} guide: none of the sampler's {len(timesteps)} steps, from {first} to 0, lies in its window "
            f"{window[0]:.2f}..{window[1]:.2f}; widen the window"
        )
    return guided


def contrast(other: Denoiser, weight: float) -> Guidance:
    """Return the guidance other + weight (self - other).

    With an unconditional `other` it is [1], with a weaker network it is [2]. Weight 1 gives the bare denoiser bit for
    bit, without a call to `other`.
    """

    def wrap(denoiser: Denoiser) -> Denoiser:
        if weight == 1:
            return denoiser
        return lambda x_t, t: torch.lerp(other(x_t, t), denoiser(x_t, t), weight)

    return wrap


def mean_shifts(
    timesteps: Sequence[float], abar: Tensor, weighting: Weighting = "variance", switch: float = 0.5
) -> Callable[[int], float]:
    """Return the function from t to the shift of x0 that moves the ancestral posterior mean as far as in [4].

    It is defined at `timesteps` only. The mean of q(x_u | x_t, x0) contains x0 with the factor
    c = sqrt(b) (1 - a / b) / (1 - a), and its variance is v = (1 - b) (1 - a / b) / (1 - a). "variance" moves the mean
    by v, so x0 by v / c = (1 - b) / sqrt(b); "fixed" by 1, so x0 by 1 / c; "switch-off" is "fixed" while t > switch T,
    then 0. After the last step b = 1.
    """
    visited = levels(timesteps)
    signal = [*(float(abar[t]) for t in visited), 1.0]
    shifts: dict[int, float] = {}
    for t, a, b in zip(visited, signal, signal[1:], strict=False):
        fixed = (1 - a) * b**0.5 / (b - a)
        off = weighting == "switch-off" and t <= switch * len(abar)
        shifts[t] = (1 - b) / b**0.5 if weighting == "variance" else fixed * (not off)
    return shifts.__getitem__


def ascend(
    signal: Signal,
    scale: float,
    abar: Tensor,
    *,
    signal_denoiser: Denoiser | None = None,
    shift: Callable[[int], float] | None = None,
    fade: Fade | None = None,
) -> Guidance:
    """Return guidance that moves x0 up the gradient of `signal` with respect to x_t, in the published unit [4].

    The gradient is normalised to a largest entry of 1 in each row. The step is scale x shift(t), times `fade` of the
    row. The default of `shift` is (1 - abar) / sqrt(abar): by Tweedie's formula the effect of a score shift of one.
    Other arguments are as in `displace`. Scale 0, or shift 0 at t, gives the bare denoiser.
    """
    shift_at = shift or (lambda t: float((1 - abar[t]) / abar[t].sqrt()))

    def move(g: Tensor, x0: Tensor, t: int) -> Tensor:
        return scale * shift_at(t) * (g / per_row(g.flatten(1).abs().amax(1).clamp_min(1e-12), g))

    return _ascend(signal, lambda t: scale * shift_at(t), move, signal_denoiser, fade)


def displace(
    signal: Signal, by: Displacement, *, signal_denoiser: Denoiser | None = None, fade: Fade | None = None
) -> Guidance:
    """Return guidance that moves x0 up the gradient of `signal` with respect to x_t, by the lengths of `by`.

    The signal is computed on the estimate of `signal_denoiser`, by default on that of the guided denoiser. If the two
    are the same object, or it is the conditional part of classifier-free guidance, one forward pass serves both. Length
    0 at t gives the bare denoiser.
    """
    return _ascend(signal, by.at, by.move, signal_denoiser, fade)


def _ascend(
    signal: Signal,
    length: Callable[[int], float],
    move: Callable[[Tensor, Tensor, int], Tensor],
    signal_denoiser: Denoiser | None,
    fade: Fade | None,
) -> Guidance:
    """Return guidance by move(gradient, estimate, t), the bare denoiser where length(t) is 0."""

    def wrap(denoiser: Denoiser) -> Denoiser:
        source = denoiser if signal_denoiser is None else signal_denoiser

        def guided(x_t: Tensor, t: int) -> Tensor:
            if length(t) == 0:
                return denoiser(x_t, t)
            x0, value, g = _signal_gradient(signal, source, x_t, t)
            if x_t.requires_grad:  # outer guidance may need the graph, which is cut
                x0 = denoiser(x_t, t)
            elif isinstance(denoiser, ClassifierFree) and source is denoiser.conditional:
                x0 = denoiser.around(x0, x_t, t)
            elif source is not denoiser:
                x0 = denoiser(x_t, t)
            by = move(g, x0.detach(), t)
            return x0 + (by if fade is None else per_row(fade(value, t), g) * by)

        return guided

    return wrap


def _signal_gradient(signal: Signal, denoiser: Denoiser, x_t: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the estimate, its signal [B] and the gradient, detached. Weights get no gradient."""
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        x0 = denoiser(x_t, t)
        value = signal(x0, t)
    if not value.requires_grad:  # a constant signal, such as the JEPA score of a linear network
        return x0.detach(), value, torch.zeros_like(x_t)
    (g,) = torch.autograd.grad(value, x_t, torch.ones_like(value), materialize_grads=True)
    return x0.detach(), value.detach(), g
