"""One part of a recipe trained by itself, with what it stands on; the recipe finds it in the run folder later."""

from __future__ import annotations

from pathlib import Path

import torch

from medlt import config as configs
from medlt.types import InputError
from pipelines import balancing, denoising, encoding, judging, learning, learnt, opening
from pipelines.stages import Progress, quiet
from pipelines.tuning import nothing

PARTS = ("codec", "sparse", "denoiser", "classifier", "epistemic")


def main(config: configs.RunConfig, part: str, progress: Progress = quiet) -> Path:
    """Train or resume `part`; returns the folder that holds it. Raises InputError on bad input."""
    if part not in PARTS:
        raise InputError(f"{part!r} is no part of a recipe; train one of {', '.join(PARTS)}")
    if part == "denoiser":
        return _denoiser(config, progress)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    _look(config, part)
    run, real = opening.collect(config)
    if part == "classifier":
        judging.judges(run, real, progress)
        return run.home("judges")
    if part == "epistemic":
        learning.predictor(run, real, judging.judges(run, real, progress), progress)
        return run.home(part)
    codec = encoding.codec(run, real, progress)
    if part == "sparse":
        learning.sparse(run, real, learning.latents(run, real, codec, progress), progress)
    return run.home(part)


def _look(config: configs.RunConfig, part: str) -> None:
    """Raises InputError for what a private run does not train, or has not put by for."""
    if config.privacy is not None and part == "epistemic":
        raise InputError("privacy: the epistemic head has no private form; train it in a run without privacy")
    if config.blind and part == "classifier" and not (config.privacy and config.privacy.classifier):
        raise InputError("privacy: the budget of this run pays for no classifier; write privacy.classifier: true")


def _denoiser(config: configs.RunConfig, progress: Progress) -> Path:
    """The denoiser, with DiffuLT's losses where the recipe has them."""
    ready = learnt.learn(config, progress)
    further = balancing.losses(ready, config.method)
    denoising.denoiser(ready.run, ready.real, ready.latents, progress, further)
    return ready.run.home("denoiser" if further is nothing else "diffult")
