"""The methods that sample under real label vectors, built from a run's config and what the run has learnt."""

from __future__ import annotations

from typing import Any

from medlt import config as configs
from medlt.diffusion.schedulers import factory
from medlt.synthesis import METHODS
from medlt.synthesis.conditional import Conditional
from medlt.synthesis.edit import ImageEdit
from medlt.synthesis.from_noise import FromNoise
from pipelines import balancing, denoising, encoding, guiding
from pipelines.learnt import Learnt


def build(ready: Learnt) -> Conditional:
    """The method with everything it reads. A row is judged by the fold of the real row that lends its labels."""
    run, config, latents = ready.run, ready.run.config, ready.latents
    chosen = config.method
    assert isinstance(chosen, configs.Sampling | configs.Edit)  # the config's own check
    backbone = denoising.denoiser(run, ready.real, latents, ready.progress, balancing.losses(ready, chosen))
    shared: dict[str, Any] = {
        "collection": ready.rows,
        "backbone": backbone,
        "standardiser": latents.standardiser,
        "decode": encoding.decoder(run, latents.codec),
        "scheduler": factory(chosen.scheduler, chosen.steps, backbone.noise),
        "candidates": config.need.candidates * (1 + config.need.refills),
        "guidance": chosen.guidance,
        "guides": guiding.guides(ready, chosen.guides, backbone),
    }
    if isinstance(chosen, configs.Edit):
        return ImageEdit(latents=latents, strengths=chosen.strengths, mixed=chosen.mixed, **shared)
    height, width = latents.cache.shape[-2:]
    kind: type[FromNoise] = METHODS[chosen.kind]
    return kind(shape=(backbone.channels, height, width), boost=chosen.boost, skip=chosen.skip, **shared)
