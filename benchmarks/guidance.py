"""The cost of guidance relative to the unguided sampler: the same network, noise and steps, timed in turns.

    python benchmarks/guidance.py [--steps 50] [--rounds 2] [--batch 8] [--weights 1 3.5] [--device cpu]
    python benchmarks/guidance.py --width 256 --weights 3.5 --rounds 1 --guides "longtail, TAESD float32"

Rows "published cadence": every fifth of all ancestral steps; the others keep their own windows. The published count
for minority guidance every fifth step is +40 % forwards, +20 % backwards (arXiv 2407.11555). Longtail Guidance
decodes and applies the small classifier at 64 px. No figure includes the final decoding. The cost is one per image,
so the ratio depends on the sampled network; its `--width` is 64 in the shipped configs.

Ratios are those of the rounds: their median, and the least and most. On a CPU seconds are CPU seconds of the process,
which a shared machine disturbs least; OMP_NUM_THREADS=1 makes them those of one quiet core.

Target: every guide at most 1.6 times the unguided sampler, in all rounds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch
from common import table
from guidance_longtail import FINDINGS, epistemic, taesd
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.placement import best_dtype
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import factory, scheduler
from medlt.diffusion.signals import between
from medlt.rng import noise_like
from medlt.synthesis.guides import Guide, SamplingContext, guided
from medlt.synthesis.longtail import LongtailGuide, differentiable_decoder
from medlt.synthesis.minority import JepaGuide, MinorityGuide
from medlt.synthesis.space import in_calls

SHAPE = (4, 16, 16)
TARGET = 1.6


class Features(torch.nn.Sequential):
    """A small convolutional classifier's features of latents: [B,64]."""

    def __init__(self) -> None:
        super().__init__(
            *(torch.nn.Conv2d(4, 32, 3, 2, 1), torch.nn.SiLU(), torch.nn.Conv2d(32, 64, 3, 2, 1), torch.nn.SiLU()),
            *(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(256, 64)),
        )


def guides(device: str) -> dict[str, Guide]:
    """What is measured against no guide."""
    features, guidance_classifier = Features().eval().requires_grad_(False).to(device), epistemic(device)
    longtail: dict[str, Guide] = {
        f"longtail, TAESD {str(dtype).removeprefix('torch.')}": LongtailGuide(
            decode=differentiable_decoder(taesd(dtype, device)), guidance_classifier=guidance_classifier
        )
        for dtype in dict.fromkeys((torch.float32, best_dtype(device)))
    }
    return {
        "minority, published cadence": MinorityGuide(every=5, window=(0, 1)),
        "minority, ours": MinorityGuide(),
        "minority of features, ours": MinorityGuide(distance=between(features)),
        "JEPA score, ours": JepaGuide(features=features),
        **longtail,
    }


def sampler(backbone: Backbone, chosen: Sequence[Guide], weight: float, steps: int, batch: int) -> Callable[[], Tensor]:
    """One batch of latents, as FromNoise samples it."""
    labels = torch.eye(FINDINGS)[torch.arange(batch) % FINDINGS]
    parts = (noise_like(range(batch), SHAPE), backbone.condition(labels), labels, labels.argmax(1), torch.arange(batch))

    @torch.no_grad()
    def sampled(noise: Tensor, condition: Tensor, labels: Tensor, target: Tensor, seeds: Tensor) -> Tensor:
        built = scheduler("ddpm", steps)
        start = from_noise(noise, built)
        context = SamplingContext(backbone, condition, labels, target, seeds, start.timesteps, factory("ddpm", steps))
        return sample(guided(chosen, context, weight), start, built, seeds.tolist())

    call = in_calls(sampled, backbone.device, batch)
    where = [part.to(backbone.device) for part in parts[:-1]]
    return lambda: call(*where, parts[-1]).cpu()


def timed(ways: Sequence[Callable[[], Tensor]], rounds: int, device: str) -> list[list[float]]:
    """Seconds of each way in each round, after one that does not count; they take turns."""
    spent: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 1):
        for i, way in enumerate(ways):
            began = clock(device)
            way()
            if turn:
                spent[i].append(clock(device) - began)
    return spent


def clock(device: str) -> float:
    """Seconds: of this process's CPU time, or on a GPU of the wall clock."""
    return time.perf_counter() if device == "cuda" else time.process_time()


def rows(backbone: Backbone, args: argparse.Namespace) -> list[str]:
    """One line a weight of classifier-free guidance and guide: images a second, ratios to unguided."""
    chosen = {name: guide for name, guide in guides(args.device).items() if name in (args.guides or [name])}
    lines: list[str] = []
    for weight in args.weights:
        ways = [sampler(backbone, by, weight, args.steps, args.batch) for by in ((), *zip(chosen.values()))]
        bare, *times = timed(ways, args.rounds, args.device)
        for name, seconds in zip(chosen, times, strict=True):
            each = sorted(guided / plain for guided, plain in zip(seconds, bare, strict=True))
            ratio = f"{median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"
            speeds = f"{args.batch / min(bare):.2f} | {args.batch / min(seconds):.2f} | {ratio}"
            lines.append(f"| {weight} | {name} | {speeds} | {'met' if each[-1] <= TARGET else 'missed'} |")
    return lines


def main() -> None:
    """Every weight and guide."""
    read = argparse.ArgumentParser()
    read.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    read.add_argument("--steps", type=int, default=50)
    read.add_argument("--rounds", type=int, default=2)
    read.add_argument("--batch", type=int, default=8)
    read.add_argument("--width", type=int, default=64)
    read.add_argument("--weights", type=float, nargs="+", default=[1.0, 3.5])
    read.add_argument("--guides", nargs="+", help="names of rows to measure; default: all")
    args = read.parse_args()
    warnings.simplefilter("ignore")
    backbone = LabelUNet(SHAPE[0], FINDINGS, width=args.width).eval().requires_grad_(False).backbone()
    backbone = replace(backbone, network=backbone.network.to(args.device))
    lines = [
        f"LabelUNet, width {args.width}, {args.batch} latents 4x16x16, ddpm {args.steps} steps, {args.device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds.",
        "",
        "| CFG | guide | unguided images/s | images/s | x time | <= 1.6 |",
        "|---:|---|---:|---:|---:|---|",
        *rows(backbone, args),
    ]
    table("guidance" if args.width == 64 else f"guidance_width_{args.width}", lines)


if __name__ == "__main__":
    main()
