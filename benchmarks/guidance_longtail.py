"""What longtail guidance costs: time over the unguided sampler, memory of the gradient through the decoder.

    python benchmarks/guidance_longtail.py [--rounds 3] [--steps 50] [--batch 8] [--side 128]
    python benchmarks/guidance_longtail.py --memory [TAESD] [AutoencoderKL]

Time: every third step of the middle third, both samplers in turns, best of the rounds, classifier-free guidance in
both; the last decoding is in neither. The decoder is TAESD of $MEDLT_DATA/weights where that is set, else one of its
shape with random weights; the classifier is the small one at 64 px. What guidance adds is a cost an image, so the ratio
is that of the sampled network: the recipes' small label UNet, and one of four times its width.
Memory: most resident memory above the start, each case in a process of its own, one gradient at 512 px. AutoencoderKL
has Stable Diffusion's shape and random weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from common import table
from torch import Tensor

from medlt.chance import noise_like
from medlt.classify.epistemic import STATISTICS, Epistemic, Members
from medlt.classify.networks import network
from medlt.diffusion import schedulers
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.placement import best_dtype
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.through import climb, seen
from medlt.synthesis.guides import Told, guided
from medlt.synthesis.longtail import LongtailGuide, objective, pictures
from medlt.testing import constant_denoiser, tiny_autoencoder_kl, tiny_autoencoder_tiny

FINDINGS, WEIGHT = 14, 3.5
ROWS = {"TAESD": (1, 4), "AutoencoderKL": (1, 2)}
LARGE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "norm_num_groups": 32,
}  # fmt: skip
TAESD: dict[str, Any] = {
    "encoder_block_out_channels": (64,) * 4, "decoder_block_out_channels": (64,) * 4,
    "num_encoder_blocks": (1, 3, 3, 3), "num_decoder_blocks": (3, 3, 3, 1),
}  # fmt: skip


def taesd(dtype: torch.dtype) -> AutoencoderCodec:
    """The tiny autoencoder of Stable Diffusion 1.x, or one of its shape."""
    folder = Path(os.environ.get("MEDLT_DATA", "")) / "weights" / "taesd_diffusers"
    fast = {"dtype": dtype, "channels_last": dtype != torch.float32}
    if folder.is_dir() and "MEDLT_DATA" in os.environ:
        return load_codec(folder, **fast)
    return AutoencoderCodec(tiny_autoencoder_tiny(**TAESD), **fast)


def epistemic(side: int = 64) -> Epistemic:
    """The small classifier and a head of the default size, untrained: their cost is what counts."""
    net = network("small", FINDINGS)
    return Epistemic(net, side, Members(12, net.head.in_features, 64, FINDINGS, 3.0, 0), {"classifier": ""})


def backbones() -> dict[str, Backbone]:
    """What is sampled with."""
    widths = {"small label UNet": 64, "label UNet, four times as wide": 256}
    return {
        name: LabelUNet(4, FINDINGS, width=width).eval().requires_grad_(False).backbone()
        for name, width in widths.items()
    }


def sampler(backbone: Backbone, guide: LongtailGuide, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise and labels to latents, as the method does it: in calls of four rows on one thread each."""

    @torch.no_grad()
    def sampled(noise: Tensor, labels: Tensor, target: Tensor, seeds: Tensor) -> Tensor:
        made = schedulers.scheduler("ddim", steps)
        start = from_noise(noise, made)
        told = Told(backbone, backbone.condition(labels), labels, target, seeds, start.timesteps)
        return sample(guided((guide,), told, WEIGHT), start, made, seeds.tolist())

    calls = fixed_batches(sampled)
    return lambda noise, labels: calls(noise, labels, labels.argmax(1), torch.arange(len(noise)))


def longtail_rows(rounds: int = 3, steps: int = 50, batch: int = 8, side: int = 128) -> list[str]:
    """Lines of a table: seconds of the unguided and the guided sampler, and their ratio, a network and a precision."""
    noise = noise_like(range(batch), (4, side // 8, side // 8))
    labels = torch.nn.functional.one_hot(torch.arange(batch) % FINDINGS, FINDINGS).float()
    lines = [
        f"{batch} images of {side} px, {steps} steps, guidance {WEIGHT}, every third step of the middle third.",
        "",
        "| sampled network | decoder | unguided s | guided s | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for name, backbone in backbones().items():
        for dtype in dict.fromkeys((torch.float32, best_dtype("cpu"))):
            guide = LongtailGuide(pictures(taesd(dtype)), epistemic())
            ways = [sampler(backbone, LongtailGuide(guide.decode, guide.predictor, weight=w), steps) for w in (0, 0.02)]
            spent = [min(times) for times in zip(*(timed(ways, noise, labels) for _ in range(rounds)), strict=True)]
            told = f"| {name} | TAESD {str(dtype).removeprefix('torch.')} | {spent[0]:.2f} | {spent[1]:.2f} |"
            lines.append(f"{told} {spent[1] / spent[0]:.2f} |")
    return lines


def timed(ways: list[Callable[[Tensor, Tensor], Tensor]], noise: Tensor, labels: Tensor) -> list[float]:
    """Seconds of each, one after the other."""
    found: list[float] = []
    for way in ways:
        began = time.perf_counter()
        way(noise, labels)
        found.append(time.perf_counter() - began)
    return found


def one_gradient(kind: str, checkpointing: bool, rows: int, side: int) -> tuple[float, float]:
    """MiB of resident memory above the start at most, and seconds, of one guided step at `side` px."""
    codec = taesd(torch.float32) if kind == "TAESD" else AutoencoderCodec(tiny_autoencoder_kl(**LARGE))
    decode, z = pictures(codec, checkpointing=checkpointing), noise_like(range(rows), (4, side // 8, side // 8))
    look = objective(
        epistemic(), STATISTICS["variance"], torch.ones(rows, FINDINGS).bool(), torch.zeros(rows, FINDINGS)
    )
    guidance = climb(seen(decode, look), 0.02)
    guidance(constant_denoiser(z[:, :, :8, :8]))(z[:, :, :8, :8], 500)  # what the libraries allocate once
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    guidance(constant_denoiser(z))(z, 500)
    spent = time.perf_counter() - began
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20, spent


def memory_rows(kinds: list[str], side: int = 512) -> list[str]:
    """Lines of a table: a decoder, MiB and seconds of one gradient with and without checkpointing."""
    lines = [
        f"One gradient through the decoder at {side} px, float32.",
        "",
        "| decoder | images | checkpointing | MiB above the start | of that without | s |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for kind, rows in [(named, count) for named in kinds for count in ROWS[named]]:
        whole = 0.0
        for checkpointing in (False, True):
            order = [sys.executable, __file__, "--one", kind, str(int(checkpointing)), str(rows), str(side)]
            most, spent = map(float, subprocess.run(order, capture_output=True, text=True, check=True).stdout.split())
            whole = whole or most
            told = f"| {kind} | {rows} | {'yes' if checkpointing else 'no'} | {most:.0f} |"
            lines.append(f"{told} {most / whole:.2f} | {spent:.1f} |")
    return lines


def main() -> None:
    """Time, or memory."""
    read = argparse.ArgumentParser()
    read.add_argument("--rounds", type=int, default=3)
    read.add_argument("--steps", type=int, default=50)
    read.add_argument("--batch", type=int, default=8)
    read.add_argument("--side", type=int, default=128)
    read.add_argument("--memory", nargs="*", choices=("TAESD", "AutoencoderKL"), help="decoders to measure instead")
    read.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    asked = read.parse_args()
    if asked.one:
        kind, checkpointing, rows, side = asked.one
        print(*one_gradient(kind, checkpointing == "1", int(rows), int(side)))
    elif asked.memory is not None:
        table("guidance_longtail_memory", memory_rows(asked.memory or ["TAESD", "AutoencoderKL"]))
    else:
        table("guidance_longtail", longtail_rows(asked.rounds, asked.steps, asked.batch, asked.side))


if __name__ == "__main__":
    main()
