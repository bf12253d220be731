"""The sampling loop: a denoiser, a start, and a diffusers scheduler that takes x0 estimates.

x_t is the noisy latent [B,C,h,w] at timestep t, x0 the clean estimate. The start is where the loop begins, and guidance
is part of the denoiser. Every method of medlt is a choice of these two.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medlt.diffusion.schedulers import begin, draws_noise, evaluations, step
from medlt.rng import torch_generator
from medlt.types import Denoiser, InputError


@dataclass(frozen=True)
class Start:
    """The start of sampling: x [B,...] at timesteps[0], and the falling timesteps of the denoiser.

    x is in the scale of the scheduler: some keep x_t times a factor, see `medlt.diffusion.schedulers`.
    """

    x: Tensor
    timesteps: Sequence[float]


def from_noise(noise: Tensor, scheduler: Any, initial_noise_scale: float = 1.0, skip_steps: int = 0) -> Start:
    """Return a start with the whole schedule, from unit noise [B,...]. It sets up `scheduler` for this batch only.

    Boost-and-Skip (arXiv 2502.06516): `initial_noise_scale` (gamma) scales x_T, and the first `skip_steps` steps are
    left out, so that sampling begins at T - skip_steps. Raises InputError if no step is left, if the scale is not
    positive, or if it is not 1 with a scheduler that draws no noise: the latent would stay scaled.
    """
    steps = scheduler.num_inference_steps
    if not 0 <= skip_steps < steps:
        raise InputError(f"skip_steps is {skip_steps} of {steps} steps; leave out 0 to {steps - 1} of them")
    if initial_noise_scale <= 0 or (initial_noise_scale != 1 and not draws_noise(scheduler)):
        raise InputError(
            f"initial_noise_scale {initial_noise_scale} under {type(scheduler).__name__}; give 1, or a number above 0 "
            "with a scheduler that draws noise, such as ddpm, euler_a"
        )
    timesteps = evaluations(scheduler, steps - skip_steps)
    begin(scheduler, timesteps)
    if skip_steps:
        one = torch.ones((), device=noise.device)
        return Start(initial_noise_scale * noise / scheduler.scale_model_input(one, timesteps[0]), timesteps)
    return Start(noise * (initial_noise_scale * float(scheduler.init_noise_sigma)), timesteps)


def last_steps(strength: float, steps: int) -> int:
    """Return the number of steps run from a latent, at least 1: the share `strength` of `steps`, as in diffusers."""
    return max(1, round(strength * steps))


def from_latent(z: Tensor, noise: Tensor, scheduler: Any, last_steps: int, renoise: bool = True) -> Start:
    """Return a start with the last `last_steps` steps: clean latents z [B,...] with noise (SDEdit, 2108.01073).

    renoise=False uses z as x_t, without `noise`, like the published code of arXiv 2405.01705. It sets up `scheduler`
    for this batch only. Raises ValueError unless 1 <= last_steps <= steps.
    """
    timesteps = evaluations(scheduler, last_steps)
    begin(scheduler, timesteps)
    if renoise:
        at = torch.tensor(timesteps[:1], dtype=scheduler.timesteps.dtype)
        return Start(scheduler.add_noise(z, noise, at), timesteps)
    return Start(z / scheduler.scale_model_input(torch.ones((), device=z.device), timesteps[0]), timesteps)


def _options(scheduler: Any, seeds: Sequence[int], rows: int) -> dict[str, Any]:
    """Return the options of a step: a generator for each row if it draws noise. Raises ValueError without seeds."""
    if not draws_noise(scheduler):
        return {}
    if len(seeds) != rows:
        raise ValueError(f"{type(scheduler).__name__} draws noise: give one seed for each row, not {len(seeds)}")
    return {"generator": [torch_generator("step noise", int(seed)) for seed in seeds]}


def _finite(x: Tensor) -> Tensor:
    """Return which rows of x [B,...] are finite throughout, bool [B]."""
    return x.flatten(1).isfinite().all(1)


@torch.no_grad()
def sample(denoiser: Denoiser, start: Start, scheduler: Any, seeds: Sequence[int] = ()) -> Tensor:
    """Return clean estimates in the shape of start.x. `scheduler` is the one that `start` was made with.

    `seeds`, one for each row, are for schedulers that draw noise in their steps (ddpm, lcm, tcd, sa, ..., see
    `schedulers.draws_noise`), so that the noise of a row depends on its seed only. They may equal the seeds of the
    start's noise, because the random stream differs. The last step returns the estimate itself, so no noise is left for
    any number of steps. A row that is not finite at some step, as can happen in low precision, becomes NaN.
    """
    options = _options(scheduler, seeds, len(start.x))
    memory = inspect.signature(scheduler.step).parameters.get("order")  # of lms: estimates it combines, if it has them
    x, whole = start.x, _finite(start.x)
    for done, t in enumerate(start.timesteps[:-1], 1):
        seen = scheduler.scale_model_input(x, t)
        x0 = denoiser(seen, round(t))
        whole &= _finite(x0)
        if memory is not None:
            options["order"] = min(done, memory.default)
        x = step(scheduler, x0, seen, t, x, **options)
    last = start.timesteps[-1]
    x0 = denoiser(scheduler.scale_model_input(x, last), round(last))
    whole &= _finite(x0)
    return torch.where(whole.reshape(-1, *[1] * (x0.ndim - 1)), x0, torch.nan)
