"""Noise levels for small latents: what an exact denoiser of their Gaussian makes of them, without any training.

    python benchmarks/schedules.py NAME=LATENTS.npy [NAME=LATENTS.npy ...] [--moments] [--halves]

LATENTS.npy holds latents [N,C,h,w], or the raw moments of a cache [N,2C,h,w] with --moments. They are standardised by
channel; their covariance is that of Ledoit and Wolf. For a Gaussian the best denoiser and the error that it leaves are
known, so the table is that of the noise levels alone. With --halves it is the mean of four random halves of the images,
and the deviation between them:

| column | meaning |
|---|---|
| informative | share of timesteps at which the error of x0 lies between 5 and 95 % of the variance |
| almost noise | share of timesteps at which it is above 95 % |
| sampled variance | variance of sampled latents over that of real ones, 1 if exact, by scheduler and steps |
| distance | Frechet distance of sampled and real Gaussians, over the real variance |
| brightness | deviation of the mean of a latent's channel, over the real one |
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from common import table
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from medlt.diffusion.noise import NoiseSchedule, resolution_shift
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler

STEPS, NAMES, HALVES = (10, 25, 50), ("dpm++", "ddim"), 4
Key = tuple[str, str, int]


def spectrum(latents: np.ndarray) -> tuple[Tensor, Tensor, float]:
    """Return eigenvalues [D] of the covariance, the weight [C,D] of each in a channel's mean, and the side."""
    z = latents - latents.mean((0, 2, 3), keepdims=True)
    z = z / z.std((0, 2, 3), keepdims=True)
    count, channels, height, width = z.shape
    covariance, _ = ledoit_wolf(z.reshape(count, -1))
    values, vectors = np.linalg.eigh(covariance)
    means = vectors.reshape(channels, height * width, -1).mean(1)
    return torch.from_numpy(values.clip(1e-8)), torch.from_numpy(means), (height * width) ** 0.5


def left(values: Tensor, abar: Tensor) -> Tensor:
    """Return the share of the variance [T] that the best denoiser leaves unexplained at each timestep."""
    a = abar.double()[:, None]
    return (values * (1 - a) / (a * values + 1 - a)).sum(1) / values.sum()


def sampled(values: Tensor, noise: NoiseSchedule, name: str, steps: int) -> Tensor:
    """Return the deviation [D] of latents that the sampler makes with the best denoiser, along each eigenvector.

    The denoiser is linear, so a start of 1 along each eigenvector ends in the factor of the noise.
    """
    abar = noise.abar().double()

    def denoise(x: Tensor, t: int) -> Tensor:
        a = abar[t]
        return a.sqrt() * values / (a * values + 1 - a) * x

    built = scheduler(name, steps, noise)
    return sample(denoise, from_noise(torch.ones(1, len(values)).double(), built), built)[0].abs()


def measured(latents: np.ndarray) -> dict[Key, list[float]]:
    """Return (noise levels, scheduler, steps) -> the columns of the table."""
    values, means, side = spectrum(latents)
    half, true, cells = resolution_shift(side) ** 0.5, values.sqrt(), {}
    choices = {"plain": NoiseSchedule(), "zero": NoiseSchedule(zero_terminal=True)}
    choices |= {f"zero, shift {s:g}": NoiseSchedule(zero_terminal=True, shift=s) for s in (half, half**2)}
    for choice, noise in choices.items():
        unexplained = left(values, noise.abar())
        inside, above = (unexplained > 0.05) & (unexplained < 0.95), unexplained >= 0.95
        shares = [float(one.double().mean()) for one in (inside, above)]
        for method, steps in itertools.product(NAMES, STEPS):
            made = sampled(values, noise, method, steps)
            whole, distance = (float(one.square().sum() / values.sum()) for one in (made, made - true))
            bright = [float((means.square() @ one.square()).sqrt().mean()) for one in (made, true)]
            cells[choice, method, steps] = [*shares, whole, distance, bright[0] / bright[1]]
    return cells


def rows(name: str, latents: np.ndarray, halves: bool) -> list[str]:
    """Return the lines of one data set."""
    rng = np.random.default_rng(0)
    parts = [rng.permutation(len(latents))[: len(latents) // 2] for _ in range(HALVES)] if halves else [slice(None)]
    found = [measured(latents[part]) for part in parts]
    lines = []
    for key in found[0]:
        numbers = np.array([one[key] for one in found])
        pairs = zip(numbers.mean(0), numbers.std(0), strict=True)
        cells = [f"{mean:.4f}" + (f" ± {sd:.4f}" if halves else "") for mean, sd in pairs]
        lines.append(f"| {name} | " + " | ".join([*map(str, key), *cells]) + " |")
    return lines


def main(arguments: list[str]) -> None:
    """Write the table."""
    head = ("latents", "noise levels", "scheduler", "steps", "informative", "almost noise", "sampled variance",
            "distance", "brightness")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    for given in arguments:
        if "=" in given:
            name, path = given.split("=", 1)
            latents = np.load(Path(path), mmap_mode="r")
            used = latents[:, : latents.shape[1] // 2] if "--moments" in arguments else latents
            lines += rows(f"{name}, {len(latents)}", np.asarray(used, np.float64), "--halves" in arguments)
    table("schedules", lines)


if __name__ == "__main__":
    main(sys.argv[1:])
