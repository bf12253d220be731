"""Latent fusion, end to end: a long-tailed collection in, a filled tail and its evidence out (arXiv 2405.01705)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from medlt import config as configs
from medlt.checks.folds import Crossfit
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.schedulers import factory
from medlt.files import digest, write_table
from medlt.report.html import write as write_report
from medlt.runs import Run
from medlt.sparse.embedding import SimplicialCoder
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.plan import Collection as FusionRows
from medlt.synthesis.plan import Draws
from pipelines import denoising, encoding, learning, making, proving, showing, stages
from pipelines.making import Prepared
from pipelines.stages import Collection, Progress, quiet

ARM = "fusion"


def prepare(config: configs.RunConfig, progress: Progress = quiet) -> Prepared[LatentFusion]:
    """Open the data and learn what synthesis needs, or find it learnt. Raises InputError on bad input."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    run, real = stages.collect(config)
    codec = encoding.codec(run, real, progress)
    latents = learning.latents(run, real, codec, progress)
    coder = learning.sparse(run, real, latents, progress)
    backbone = denoising.denoiser(run, real, latents, progress)
    judges = learning.judges(run, real, progress)
    return Prepared(run, real, judges, build(run, real, latents, coder, backbone, judges))


def main(config: configs.RunConfig, progress: Progress = quiet) -> Path:
    """Run or resume the recipe; returns the run folder. Raises InputError before anything is written on bad input."""
    ready = prepare(config, progress)
    run, real, method = ready.run, ready.real, ready.method
    with run.stage("synthesis"):
        plan = method.plan(real.shortfall(), config.seed)
        write_table(run.path("plan.parquet"), plan)
        making.make(run, method, plan, making.checks(config, real, ready.judges), progress)
        made = making.publish(run, real, plan, ARM, digest(run.told()["digests"]))
    with run.stage("evaluation"):
        proving.evaluate(run, real, made, ARM, progress)
    with run.stage("report"):
        showing.panels(run, method.explain)
        write_report(run.folder)
    return run.folder


def build(
    run: Run,
    real: Collection,
    latents: Latents,
    coder: SimplicialCoder,
    backbone: Backbone,
    judges: Crossfit,
) -> LatentFusion:
    """The method with everything it reads. Judges' folds decide who may be paired with whom."""
    config = run.config
    chosen, findings = config.method, real.manifest.findings
    assert isinstance(chosen, configs.Fusion)  # the config's own check
    table: pd.DataFrame = real.train.rows[["patient_id", "view", *findings]].assign(fold=judges.fold)
    draws = Draws(
        metric=chosen.pairing,
        neighbours=chosen.neighbours,
        threshold_mean=chosen.threshold_mean,
        threshold_sd=chosen.threshold_sd,
        candidates=config.need.candidates,
    )
    return LatentFusion(
        collection=FusionRows(table, findings, real.tail),
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
        labels=chosen.labels,
        rule=chosen.rule,
    )
