"""How long a run takes on this machine, from a few timed steps of its own networks.

Counted are the trainings of codec, denoiser and verifiers, the encoding of the real images, and the sampling of all
candidates. Reading images, the sparse code and the checks are not; they take about a tenth of the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medlt import config as configs
from medlt.api.collection import Collection
from medlt.progress import duration

BATCH = 8
"""Rows of a timed step on a CPU, where time grows with the rows; a GPU gets the whole batch."""
ARMS = 3
"""Of the comparison of `medlt run`: real images alone, with synthetic ones, and with repeated real ones."""
REPEATS = 2


@dataclass(frozen=True)
class Estimate:
    """Seconds of each part of a run. Print it for one line."""

    seconds: Mapping[str, float]
    images: int
    device: str

    @property
    def total(self) -> float:
        """All parts together, s."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {duration(value)}" for name, value in self.seconds.items())
        made = f"{self.images} candidate images" if self.images else "no images"
        return f"estimate for this machine ({self.device}): about {duration(self.total)} ({parts}; {made})"


def estimate(config: configs.RunConfig, collection: Collection, compare: bool = False) -> Estimate | None:
    """Return an estimate of a run that starts from nothing; None for Stable Diffusion and for parts of plug-ins.

    compare: count the comparison of classifiers too.
    """
    codec, denoiser = config.codec, config.denoiser
    if not isinstance(codec, configs.TrainedCodec) or not isinstance(denoiser, configs.UNetConfig):
        return None
    timer = _Timer(config)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        classifier = _classifier_seconds(timer, config, len(collection.findings))
        seconds = {
            "codec": _codec_seconds(timer, codec, len(collection)),
            "verifiers": 0.0 if config.data_independent else classifier * config.checks.folds,
        }
        images = _candidates(config, collection)
        seconds |= _denoiser_seconds(timer, config, len(collection.findings), images)
        if compare and config.evaluation is not None:
            seconds["comparison"] = classifier * ARMS * config.evaluation.seeds
    finally:
        torch.set_num_threads(before)
    return Estimate(seconds, images, config.device)


@dataclass(frozen=True)
class _Timer:
    """Seconds a row of a call, on the device of the config."""

    config: configs.RunConfig

    def rows(self, batch_size: int) -> int:
        return batch_size if self.config.device != "cpu" else min(BATCH, batch_size)

    def per_row(self, call: Callable[[], Any], rows: int) -> float:
        """Return the seconds a row of the fastest of a few calls; the first, which allocates, is not counted."""
        call()
        best = math.inf
        for _ in range(REPEATS):
            start = time.perf_counter()
            call()
            if self.config.device != "cpu":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return best / rows

    def autocast(self, precision: str) -> torch.autocast:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = self.config.device.split(":")[0]
        return torch.autocast(kind, kinds.get(precision, torch.bfloat16), enabled=precision in kinds)


def _gradients(net: nn.Module, out: Tensor) -> tuple[Tensor, ...]:
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    return torch.autograd.grad(out.float().square().mean(), weights, allow_unused=True)


def _codec_seconds(timer: _Timer, chosen: configs.TrainedCodec, real: int) -> float:
    """Return the seconds of training a codec and of encoding all real images."""
    from medlt.diffusion.autoencoder import autoencoder

    net: Any = autoencoder(chosen.channels, chosen.width, chosen.levels).to(timer.config.device)
    rows, size = timer.rows(chosen.batch_size), timer.config.size
    x = torch.rand(rows, 1, size, size, device=timer.config.device)
    step = timer.per_row(lambda: _gradients(net, net.decode(net.encode(x).latent_dist.mean).sample), rows)
    with torch.no_grad():
        encoding = timer.per_row(lambda: net.encode(x), rows)
    return step * chosen.steps * chosen.batch_size + encoding * real


def _classifier_seconds(timer: _Timer, config: configs.RunConfig, findings: int) -> float:
    """Return the seconds of training one classifier."""
    from medlt.classify.networks import network

    chosen = config.classifier
    net, rows = network(chosen.network, findings).to(config.device), timer.rows(chosen.batch_size)
    x = torch.rand(rows, 1, chosen.size, chosen.size, device=config.device)
    step = timer.per_row(lambda: _gradients(net, net(x)), rows)
    return step * chosen.steps * chosen.batch_size


def _denoiser_seconds(timer: _Timer, config: configs.RunConfig, findings: int, images: int) -> dict[str, float]:
    """Return the seconds of training the denoiser, and of sampling so many images."""
    from medlt.diffusion.labels import LabelUNet

    chosen, codec = config.denoiser, config.codec
    assert isinstance(chosen, configs.UNetConfig)
    assert isinstance(codec, configs.TrainedCodec)
    net = LabelUNet(codec.channels, findings, chosen.width, chosen.levels, chosen.prediction).to(config.device)
    rows, side = timer.rows(chosen.batch_size), config.size >> (codec.levels - 1)
    x = torch.rand(rows, codec.channels, side, side, device=config.device)
    t, condition = torch.ones(rows, device=config.device), torch.ones(rows, 2 * findings + 1, device=config.device)
    with timer.autocast(chosen.precision):
        step = timer.per_row(lambda: _gradients(net, net(x, t, condition)), rows)
    with torch.no_grad(), timer.autocast(config.precision):
        forward = timer.per_row(lambda: net(x, t, condition), rows)
    return {
        "denoiser": step * chosen.steps * chosen.batch_size,
        "images": 2 * forward * _sampling_steps(config.method) * images,
    }


def _sampling_steps(method: Any) -> float:
    """Return the denoiser's steps an image; each needs the network with and without the label."""
    strength = getattr(method, "strength", 1.0)
    share = sum(strength) / len(strength) if isinstance(strength, tuple) else strength
    return float(share * getattr(method, "num_inference_steps", 50))


def _candidates(config: configs.RunConfig, collection: Collection) -> int:
    """Return how many candidate images a run makes, before any is tried again."""
    from medlt.recipes._cohort import RealRows, requested

    manifest = collection.manifest
    shortfall = RealRows(manifest, config.targets, requested(config, manifest)).shortfall()
    return sum(shortfall.values()) * config.targets.num_candidates
