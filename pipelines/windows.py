"""What a method's steps allow: a start that its scheduler can have, guides that come to work."""

from __future__ import annotations

import torch

from medlt import config as configs
from medlt.diffusion.guidance import every_nth
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_noise
from medlt.diffusion.schedulers import evaluations, factory
from medlt.types import InputError


def look(config: configs.RunConfig) -> None:
    """Raises InputError for a guide that would never be at work, or a start that its scheduler cannot have."""
    method = config.method
    scheduler = factory(method.scheduler, method.steps)()
    if isinstance(method, configs.Fusion):
        timesteps = evaluations(scheduler, method.keep)
    else:
        timesteps = list(from_noise(torch.zeros(1, 1, 1, 1), scheduler, method.boost, method.skip).timesteps)
    for one in method.guides:
        if one.weight and not every_nth(timesteps, one.every, one.window, STABLE_DIFFUSION.train_steps):
            last = round(timesteps[0] / STABLE_DIFFUSION.train_steps, 2)
            window = "{:.2f}..{:.2f}".format(*one.window)
            raise InputError(
                f"method.guides: no step of the sampler, which goes from {last} to 0 in {len(timesteps)}, lies in the "
                f"window {window} of the {one.kind} guide; widen the window"
            )
