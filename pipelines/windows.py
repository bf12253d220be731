"""What a method's steps allow: a start that its scheduler can have, guides that come to work."""

from __future__ import annotations

import torch

from medlt import config as configs
from medlt.diffusion.guidance import guided_levels
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_noise
from medlt.diffusion.schedulers import evaluations, factory


def look(config: configs.RunConfig) -> None:
    """Raises InputError for a guide that would never be at work, or a start that its scheduler cannot have."""
    method = config.method
    scheduler = factory(method.scheduler, method.steps)()
    if isinstance(method, configs.Fusion):
        timesteps = evaluations(scheduler, method.keep)
    else:
        timesteps = list(from_noise(torch.zeros(1, 1, 1, 1), scheduler, method.boost, method.skip).timesteps)
    for one in method.guides:
        if one.weight:
            guided_levels(timesteps, one.every, one.window, STABLE_DIFFUSION.train_steps, one.kind)
