"""The methods that begin with noise, built from a run's config and what the run has learnt."""

from __future__ import annotations

from medlt import config as configs
from medlt.diffusion.schedulers import factory
from medlt.synthesis import METHODS
from medlt.synthesis.from_noise import FromNoise
from pipelines import balancing, denoising, encoding, guiding
from pipelines.learnt import Learnt


def build(ready: Learnt) -> FromNoise:
    """The method with everything it reads. A row is judged by the fold of the real row that lends its labels."""
    run, config, latents = ready.run, ready.run.config, ready.latents
    chosen = config.method
    assert isinstance(chosen, configs.Sampling)  # the config's own check
    backbone = denoising.denoiser(run, ready.real, latents, ready.progress, balancing.losses(ready, chosen))
    height, width = latents.cache.shape[-2:]
    kind: type[FromNoise] = METHODS[chosen.kind]
    return kind(
        collection=ready.rows,
        backbone=backbone,
        shape=(backbone.channels, height, width),
        standardiser=latents.standardiser,
        decode=encoding.decoder(run, latents.codec),
        scheduler=factory(chosen.scheduler, chosen.steps, backbone.noise),
        candidates=config.need.candidates * (1 + config.need.refills),
        guidance=chosen.guidance,
        guides=guiding.guides(ready, chosen.guides, backbone),
        boost=chosen.boost,
        skip=chosen.skip,
    )
