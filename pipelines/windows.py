"""What a method's steps allow: a start that its scheduler can have, guides that come to work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    for timesteps in _timesteps(method, scheduler):
        for one in method.guides:
            if one.weight:
                guided_levels(timesteps, one.every, one.window, STABLE_DIFFUSION.train_steps, one.kind)


def _timesteps(method: configs.Method, scheduler: Any) -> list[Sequence[float]]:
    """What is run of the schedule: a list for each strength a method has."""
    if isinstance(method, configs.Fusion):
        return [evaluations(scheduler, method.keep)]
    if isinstance(method, configs.Edit):
        return [evaluations(scheduler, max(1, round(strength * method.steps))) for strength in method.strengths]
    return [from_noise(torch.zeros(1, 1, 1, 1), scheduler, method.boost, method.skip).timesteps]
