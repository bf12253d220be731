"""Classifier-free guidance in an interval: what is saved, and what it costs in label and likeness.

    python benchmarks/guidance_interval.py runs/phantom_unguided [--images 192] [--steps 25] [--scale 2]

The denoiser of a finished run samples the same rows (label vectors of real tail rows, noise) in several intervals of
`guidance_interval`: from noise, and as fusion refines, by the last 5 of 75 steps from the rows' own latents. Printed
are the rows that the network computes and the time, relative to the whole interval; the verifiers' probability of the
row's finding and its paired difference from the whole interval, with standard errors; and KID against the real images
of those label vectors, in a verifier's features. The verifiers guide nothing here. An interval is worth taking if
neither is worse than the whole interval by more than its error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import table
from torch import Tensor

from medlt.classify.train import Classifier
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.sampler import Start, from_latent, from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.metrics.fidelity import kid
from medlt.rng import noise_like

WHOLE = (0.0, 1.0)
FULL, LAST = 75, 5
REFINED = (WHOLE, (1.0, 1.0))
INTERVALS = (WHOLE, (0.2, 1.0), (0.0, 0.8), (0.2, 0.8), (0.3, 0.7), (1.0, 1.0))


@dataclass(frozen=True)
class Rows:
    """Label vectors [N,K] of real rows, the finding's column of each, images uint8 [N,1,S,S], latents [N,C,h,w]."""

    labels: Tensor
    target: Tensor
    images: Tensor
    z: Tensor


@dataclass(frozen=True)
class Setup:
    """What samples and what judges. decode: latents of the backbone -> images [N,1,H,W]."""

    backbone: Backbone
    decode: Callable[[Tensor], Tensor]
    verifiers: Sequence[Classifier]
    steps: int
    batch: int
    scale: float

    def start(self, z: Tensor, first: int, refine: bool) -> tuple[Start, Any]:
        """Return the start of rows `first`, ... and its scheduler."""
        noise, count = noise_like(range(first, first + len(z)), z.shape[1:]), FULL if refine else self.steps
        built = scheduler("ddim", count, self.backbone.noise)
        return (from_latent(z, noise, built, LAST) if refine else from_noise(noise, built)), built

    @torch.no_grad()
    def made(self, rows: Rows, interval: tuple[float, float], refine: bool) -> tuple[Tensor, float, float]:
        """Return images [N,1,H,W], the seconds of sampling, and the rows that the network computed, per image."""
        images: list[Tensor] = []
        spent, computed = 0.0, 0
        for first in range(0, len(rows.labels), self.batch):
            part = slice(first, first + self.batch)
            start, built = self.start(rows.z[part], first, refine)
            inside = sum(interval[0] * 1000 <= round(t) <= interval[1] * 1000 for t in start.timesteps)
            computed += len(start.x) * (len(start.timesteps) + inside)
            began = time.perf_counter()
            condition = self.backbone.condition(rows.labels[part])
            z = sample(self.backbone.guided(condition, self.scale, interval), start, built)
            spent += time.perf_counter() - began
            images.append(self.decode(z))
        return torch.cat(images), spent, computed / len(rows.labels)

    def probability(self, images: Tensor, target: Tensor) -> np.ndarray:
        """Return the verifiers' mean probability [N] of the finding that a row is made for."""
        at = torch.arange(len(target))
        known: np.ndarray = torch.stack([one.predict(images)[at, target] for one in self.verifiers]).mean(0).numpy()
        return known


def measured(setup: Setup, rows: Rows, refine: bool) -> list[str]:
    """Return a table with one line per interval."""
    real = setup.verifiers[0].features(rows.images).numpy()
    seen = {interval: setup.made(rows, interval, refine) for interval in (REFINED if refine else INTERVALS)}
    known = {interval: setup.probability(images, rows.target) for interval, (images, _, _) in seen.items()}
    how = f"The last {LAST} of {FULL} steps from real latents" if refine else f"{setup.steps} steps from noise"
    lines = [
        f"{how}: {len(rows.target)} images, ddim, guidance_scale {setup.scale}, {len(setup.verifiers)} verifiers, "
        f"{torch.get_num_threads()} threads. Real images: {error(setup.probability(rows.images, rows.target))}.",
        "",
        "| guidance_interval | rows computed | time | verifier's probability | minus whole interval | KID |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for interval, (images, spent, computed) in seen.items():
        gap, name = known[interval] - known[WHOLE], "none" if interval == (1.0, 1.0) else f"{interval}"
        distance = kid(real, setup.verifiers[0].features(images).numpy())
        lines.append(
            f"| {name} | {computed / seen[WHOLE][2]:.2f} | {spent / seen[WHOLE][1]:.2f} | {error(known[interval])} | "
            f"{error(gap) if gap.any() else '0'} | {distance.value:.4f} ± {distance.sd:.4f} |"
        )
    return [*lines, ""]


def error(value: np.ndarray) -> str:
    """Mean with its standard error."""
    return f"{value.mean():.4f} ± {value.std(ddof=1) / len(value) ** 0.5:.4f}"


def chosen(labels: np.ndarray, tail: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers and findings of `count` rows: the positives of the tail findings, in turn."""
    pairs = [(int(row), column) for column in tail for row in np.flatnonzero(labels[:, column] == 1)]
    rows, columns = zip(*(pairs[i % len(pairs)] for i in range(count)), strict=True)
    return np.array(rows), np.array(columns)


def main() -> None:
    """Load the run's parts from its store, and measure."""
    from medlt.recipes._cohort import filed_cohort
    from medlt.recipes._models import train_verifiers
    from medlt.recipes._setup import finished
    from medlt.recipes.generator import open_generator
    from medlt.training.runtime import silent

    read = argparse.ArgumentParser()
    read.add_argument("run", type=Path)
    read.add_argument("--images", type=int, default=192)
    read.add_argument("--steps", type=int, default=25)
    read.add_argument("--batch", type=int, default=32)
    read.add_argument("--scale", type=float, default=2.0)
    args = read.parse_args()
    run, trained = finished(args.run, silent), open_generator(args.run)
    cohort = filed_cohort(run)
    fitted = [one for one in train_verifiers(run, cohort, None).verifiers if isinstance(one, Classifier)]
    labels, uids = cohort.train.labels(), list(cohort.train.rows.index)
    at, columns = chosen(labels, [cohort.findings.index(name) for name in cohort.tail], args.images)
    codec, (unique, back) = trained.codec, np.unique(at, return_inverse=True)
    picked = [uids[i] for i in unique]
    small, large = (cohort.images(cohort.train, side, picked)[back] for side in (fitted[0].size, run.config.size))
    with torch.no_grad():
        z = trained.standardiser.to(codec.latents(codec.moments(large.float() / 255)))
    rows = Rows(torch.from_numpy(labels[at]).float(), torch.from_numpy(columns), small, z)
    setup = Setup(
        trained.network.backbone(), lambda z: codec.decode(trained.standardiser.back(z)), fitted, args.steps,
        args.batch, args.scale,
    )  # fmt: skip
    table("guidance_interval", [*measured(setup, rows, False), *measured(setup, rows, True)])


if __name__ == "__main__":
    main()
