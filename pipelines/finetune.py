"""Fine-tune a denoiser on a collection and sample its tail: weights, curve, checked images and their report.

There is no verdict: whether such images help is for the experiment that compares them with duplicated real ones.
"""

from __future__ import annotations

from pathlib import Path

import torch

from medlt import config as configs
from medlt.checks.folds import Crossfit
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.schedulers import factory
from medlt.files import digest, write_table
from medlt.report.html import write as write_report
from medlt.runs import Run
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.plan import Collection as TrainRows
from pipelines import denoising, encoding, learning, making, showing, stages
from pipelines.making import Prepared
from pipelines.stages import Collection, Progress, quiet

ARM = "noise"


def prepare(config: configs.RunConfig, progress: Progress = quiet) -> Prepared[FromNoise]:
    """Open the data and learn what sampling needs, or find it learnt. Raises InputError on bad input."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    run, real = stages.collect(config)
    codec = encoding.codec(run, real, progress)
    latents = learning.latents(run, real, codec, progress)
    backbone = denoising.denoiser(run, real, latents, progress)
    judges = learning.judges(run, real, progress)
    return Prepared(run, real, judges, build(run, real, latents, backbone, judges))


def main(config: configs.RunConfig, progress: Progress = quiet) -> Path:
    """Run or resume the recipe; returns the run folder. Raises InputError before anything is written on bad input."""
    ready = prepare(config, progress)
    run, real, method = ready.run, ready.real, ready.method
    with run.stage("synthesis"):
        plan = method.plan(real.shortfall(), config.seed)
        write_table(run.path("plan.parquet"), plan)
        making.make(run, method, plan, making.checks(config, real, ready.judges), progress)
        making.publish(run, real, plan, ARM, digest(run.told()["digests"]))
    with run.stage("report"):
        showing.grid(run)
        write_report(run.folder)
    return run.folder


def build(run: Run, real: Collection, latents: Latents, backbone: Backbone, judges: Crossfit) -> FromNoise:
    """The method with everything it reads. A row is judged by the fold of the real row that lends its labels."""
    config = run.config
    chosen, findings = config.method, real.manifest.findings
    assert isinstance(chosen, configs.FromNoise)  # the config's own check
    height, width = latents.cache.shape[-2:]
    known = [name for name in ("patient_id", "view", "sex", "age") if name in real.train.rows]
    table = real.train.rows[[*known, *findings]].assign(fold=judges.fold)
    return FromNoise(
        collection=TrainRows(table, findings, real.tail),
        backbone=backbone,
        shape=(backbone.channels, height, width),
        standardiser=latents.standardiser,
        decode=encoding.decoder(run, latents.codec),
        scheduler=factory(chosen.scheduler, chosen.steps, backbone.noise),
        candidates=config.need.candidates,
        guidance=chosen.guidance,
    )
