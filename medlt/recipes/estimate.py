"""What a run would take, before it is started: seconds of each stage, memory, and disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medlt import config as configs
from medlt.data.images import read_levels
from medlt.data.manifest import Manifest
from medlt.recipes._cohort import RealRows, image_sizes, requested
from medlt.recipes._estimate import arms_part, generator_parts, latent_shape, training_seconds
from medlt.recipes._setup import RunFolder, peak_rss_mb, runtime_of
from medlt.recipes.run import ADDED, REAL
from medlt.store import Store
from medlt.training.runtime import silent
from medlt.types import InputError

READ = 8
"""Images that are read to measure how long reading takes."""
FORWARD = 1 / 3
"""Time of a network's forward pass over that of a training step, which adds the backward pass and the update."""
LATENT_BYTES = 2


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    seconds: of each stage; memory_mb: peak of this process after a few steps of each training; disk_mb: of the images
    and latents that are kept. Reading and training are measured, making images is reckoned from the training step.
    """

    seconds: Mapping[str, float]
    memory_mb: float
    disk_mb: float


def main(config: configs.RunConfig, manifest: Manifest) -> Estimate:
    """Measure a few steps of everything that the run would train, in a temporary folder, and nothing is kept.

    Raises InputError if the config's device does not exist.
    """
    rows = RealRows(manifest, config.targets, requested(config))
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(Path(place), config, runtime_of(config, silent), Store(Path(place) / "artifacts"), False)
        with run.runtime.limited():
            parts = [*generator_parts(run, rows), *arms_part(run, rows, REAL, ADDED)]
            trained = training_seconds(parts)
    steps = {one.stage: one.steps for one in parts}
    seconds = {"reading": _reading(config, manifest), **trained}
    if "denoiser" in trained:
        seconds["images"] = _sampling(config, rows, trained["denoiser"] / steps["denoiser"])
    return Estimate(_in_order(seconds), peak_rss_mb(), _disk(config, len(manifest.rows)))


def _in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the stages in the order of a run: the comparison comes last."""
    last = ("pilot", "arms")
    return {one: seconds[one] for one in sorted(seconds, key=lambda one: (one in last, [*seconds].index(one)))}


def _reading(config: configs.RunConfig, manifest: Manifest) -> float:
    """Return how long all images take to read, by the time of some; unreadable ones are left to the run."""
    seconds = []
    for uid in manifest.rows.index[:: max(1, len(manifest.rows) // READ)][:READ]:
        start = time.perf_counter()
        try:
            read_levels(manifest.file(str(uid)))
        except (InputError, OSError, ValueError):
            continue
        seconds.append(time.perf_counter() - start)
    workers = min(config.threads or os.cpu_count() or 1, os.cpu_count() or 1)
    return sum(seconds) / max(1, len(seconds)) * len(manifest.rows) / workers


def _sampling(config: configs.RunConfig, rows: RealRows, step: float) -> float:
    """Return about how long all candidates take to make, from the seconds of a training step."""
    method = config.method
    steps = getattr(method, "num_inference_steps", 50)
    strength = getattr(method, "strength", 1.0)
    strongest = max(strength) if isinstance(strength, list | tuple) else strength
    passes = steps * (float(strongest) or 1.0) * (2 if getattr(method, "guidance_scale", 1) > 1 else 1)
    candidates = sum(rows.shortfall().values()) * config.targets.num_candidates
    return candidates * passes * step * FORWARD / config.denoiser.batch_size


def _disk(config: configs.RunConfig, rows: int) -> float:
    """Return the size of the stored images and latents, MB."""
    pixels = sum(size**2 for size in image_sizes(config))
    try:
        channels, height, width = latent_shape(config)
    except InputError:
        channels = height = width = 0
    return rows * (pixels + LATENT_BYTES * channels * height * width) / 2**20
