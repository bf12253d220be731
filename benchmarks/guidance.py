"""What guidance costs over the unguided sampler: the same network, noise and steps, timed in turns in one run.

Rows "published cadence": every fifth of all ancestral steps. Rows "ours": every fifth inside the window [0.3, 0.8] T.
Published count for minority guidance every fifth step: +40 % forwards, +20 % backwards (arXiv 2407.11555).

    python benchmarks/guidance.py --steps 50 --rounds 5
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import torch
from common import table
from torch import Tensor

from medlt.chance import noise_like
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.diffusion.signals import between
from medlt.synthesis.guides import Guide, Told, guided
from medlt.synthesis.minority import JepaGuide, MinorityGuide
from medlt.synthesis.space import in_calls

FINDINGS, SHAPE = 8, (4, 16, 16)
PUBLISHED = MinorityGuide(every=5, window=(0, 1))


class Features(torch.nn.Sequential):
    """A small convolutional classifier's features of latents: [B,64]."""

    def __init__(self) -> None:
        super().__init__(
            *(torch.nn.Conv2d(4, 32, 3, 2, 1), torch.nn.SiLU(), torch.nn.Conv2d(32, 64, 3, 2, 1), torch.nn.SiLU()),
            *(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(256, 64)),
        )


def guides() -> dict[str, tuple[Guide, ...]]:
    """What is measured against no guide."""
    features = Features().eval().requires_grad_(False)
    return {
        "minority, published cadence": (PUBLISHED,),
        "minority, ours": (MinorityGuide(),),
        "minority of features, ours": (MinorityGuide(distance=between(features)),),
        "JEPA score, ours": (JepaGuide(features=features),),
    }


def sampler(
    backbone: Backbone, chosen: tuple[Guide, ...], weight: float, steps: int, batch: int
) -> Callable[[], Tensor]:
    """One batch of latents, as FromNoise samples it."""
    labels = torch.eye(FINDINGS)[torch.arange(batch) % FINDINGS]
    parts = (noise_like(range(batch), SHAPE), backbone.condition(labels), labels, labels.argmax(1), torch.arange(batch))

    @torch.no_grad()
    def sampled(noise: Tensor, condition: Tensor, labels: Tensor, target: Tensor, seeds: Tensor) -> Tensor:
        built = scheduler("ddpm", steps)
        start = from_noise(noise, built)
        told = Told(backbone, condition, labels, target, seeds, start.timesteps)
        return sample(guided(chosen, told, weight), start, built, seeds.tolist())

    call = in_calls(sampled, backbone.device, batch)
    where = [part.to(backbone.device) for part in parts[:-1]]
    return lambda: call(*where, parts[-1]).cpu()


def timed(ways: Sequence[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Least seconds of each way; they take turns, so that all meet the same machine."""
    best = [float("inf")] * len(ways)
    for _ in range(rounds):
        for i, way in enumerate(ways):
            began = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - began)
    return best


def minority_rows(
    backbone: Backbone, steps: int, rounds: int, batches: Sequence[int], weights: Sequence[float]
) -> list[str]:
    """One line a batch, weight of classifier-free guidance and guide: images a second, ratio to unguided."""
    lines: list[str] = []
    named = guides()
    for batch, weight in product(batches, weights):
        ways = [sampler(backbone, chosen, weight, steps, batch) for chosen in ((), *named.values())]
        for way in ways:
            way()
        bare, *found = timed(ways, rounds)
        for name, seconds in zip(named, found, strict=True):
            cells = f"{batch / bare:.2f} | {batch / seconds:.2f} | {seconds / bare:.2f}"
            lines.append(f"| {batch} | {weight} | {name} | {cells} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Every batch and weight."""
    read = argparse.ArgumentParser()
    read.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    read.add_argument("--steps", type=int, default=50)
    read.add_argument("--rounds", type=int, default=5)
    read.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    read.add_argument("--weights", type=float, nargs="+", default=[1.0, 3.5])
    asked = read.parse_args()
    warnings.simplefilter("ignore")
    backbone = LabelUNet(SHAPE[0], FINDINGS, width=64).eval().requires_grad_(False).backbone()
    backbone = replace(backbone, network=backbone.network.to(asked.device))
    head = ["batch", "CFG", "guide", "unguided images/s", "images/s", "x time"]
    told = f"LabelUNet, width 64, latents 4x16x16, ddpm {asked.steps} steps, {torch.get_num_threads()} threads,"
    lines = [f"{told} best of {asked.rounds}.", "", "| " + " | ".join(head) + " |", "|---:|---:|---|---:|---:|---:|"]
    lines += minority_rows(backbone, asked.steps, asked.rounds, asked.batches, asked.weights)
    table("guidance", lines)


if __name__ == "__main__":
    main()
