"""The one sampling loop: a denoiser, a start, a diffusers scheduler that takes x0 estimates.

x_t is the noisy latent [B,C,h,w] at timestep t, x0 the clean estimate. A start says where the loop begins; guidance
is inside the denoiser; so every method of medlt is a choice of those two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medlt.chance import generator
from medlt.diffusion.schedulers import draws_noise
from medlt.types import Denoiser


@dataclass(frozen=True)
class Start:
    """Where sampling begins: x [B,...] at timesteps[0], and the timesteps still to run, falling."""

    x: Tensor
    timesteps: Sequence[int]


def from_noise(noise: Tensor, scheduler: Any) -> Start:
    """The whole schedule from unit noise [B,...]."""
    return Start(noise, scheduler.timesteps.tolist())


def from_latent(z: Tensor, noise: Tensor, scheduler: Any, keep: int, renoise: bool = True) -> Start:
    """The last `keep` steps from clean latents z [B,...], forward-noised to the level they expect (SDEdit, 2108.01073).

    renoise=False hands z over as it is, as the published code of arXiv 2405.01705 does; `noise` is then not used.
    """
    steps = scheduler.timesteps[-keep:]
    if not 1 <= keep <= len(scheduler.timesteps):
        raise ValueError(
            f"keep is {keep}, but the schedule has {len(scheduler.timesteps)} steps; keep 1 to all of them"
        )
    return Start(scheduler.add_noise(z, noise, steps[:1]) if renoise else z, steps.tolist())


@torch.no_grad()
def sample(denoiser: Denoiser, start: Start, scheduler: Any, seeds: Sequence[int] = ()) -> Tensor:
    """Clean estimates, shaped as start.x. `scheduler` is fresh (multistep ones keep state) and takes x0 estimates.

    `seeds`, one a row, feed the schedulers that draw noise on the way (ddpm, lcm, tcd, dpm++sde), so that a row's
    noise is its own; they may be the seeds of the start's noise, for this is another stream. The last step returns the
    estimate itself: no noise is left, whatever the number of steps.
    """
    extra: dict[str, Any] = {}
    if draws_noise(scheduler):
        if len(seeds) != len(start.x):
            raise ValueError(f"{type(scheduler).__name__} draws noise: give one seed a row, not {len(seeds)}")
        extra["generator"] = [generator("step noise", int(seed)) for seed in seeds]
    x = start.x
    for t in start.timesteps[:-1]:
        x = scheduler.step(denoiser(x, t), t, x, **extra).prev_sample
    return denoiser(x, start.timesteps[-1])
