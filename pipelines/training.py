"""One part of a recipe trained by itself, with what it stands on; the recipe finds it in the run folder later."""

from __future__ import annotations

from pathlib import Path

import torch

from medlt import config as configs
from medlt.types import InputError
from pipelines import denoising, encoding, learning, stages
from pipelines.stages import Progress, quiet

PARTS = ("codec", "sparse", "denoiser", "classifier")


def main(config: configs.RunConfig, part: str, progress: Progress = quiet) -> Path:
    """Train or resume `part`; returns the folder that holds it. Raises InputError on bad input."""
    if part not in PARTS:
        raise InputError(f"{part!r} is no part of a recipe; train one of {', '.join(PARTS)}")
    torch.set_num_threads(config.threads or torch.get_num_threads())
    run, real = stages.collect(config)
    if part == "classifier":
        learning.judges(run, real, progress)
        return run.home("judges")
    codec = encoding.codec(run, real, progress)
    if part != "codec":
        latents = learning.latents(run, real, codec, progress)
        learn = learning.sparse if part == "sparse" else denoising.denoiser
        learn(run, real, latents, progress)
    return run.home(part)
