"""Latent fusion (arXiv 2405.01705), built from a run's config and what the run has learnt."""

from __future__ import annotations

from medlt import config as configs
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.schedulers import factory
from medlt.sparse.embedding import SimplicialCoder
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.plan import Draws
from pipelines import denoising, encoding, guiding, learning
from pipelines.learnt import Learnt


def build(ready: Learnt) -> LatentFusion:
    """The method of the run's config, with everything it reads."""
    run, chosen = ready.run, ready.run.config.method
    assert isinstance(chosen, configs.Fusion)  # the config's own check
    coder = learning.sparse(run, ready.real, ready.latents, ready.progress)
    backbone = denoising.denoiser(run, ready.real, ready.latents, ready.progress)
    return fusion(ready, chosen, coder, backbone)


def fusion(ready: Learnt, chosen: configs.Fusion, coder: SimplicialCoder, backbone: Backbone) -> LatentFusion:
    """The method with these settings. Judges' folds decide who may be paired with whom."""
    run, config, latents = ready.run, ready.run.config, ready.latents
    draws = Draws(
        metric=chosen.pairing,
        neighbours=chosen.neighbours,
        threshold_mean=chosen.threshold_mean,
        threshold_sd=chosen.threshold_sd,
        candidates=config.need.candidates * (1 + config.need.refills),
    )
    return LatentFusion(
        collection=ready.rows,
        coder=coder,
        latents=latents,
        standardiser=latents.standardiser,
        backbone=backbone,
        decode=encoding.decoder(run, latents.codec),
        scheduler=factory(chosen.scheduler, chosen.steps, backbone.noise),
        draws=draws,
        cam=chosen.cam,
        keep=chosen.keep,
        renoise=chosen.renoise,
        guidance=chosen.guidance,
        guides=guiding.guides(ready, chosen.guides, backbone),
        labels=chosen.labels,
        rule=chosen.rule,
    )
