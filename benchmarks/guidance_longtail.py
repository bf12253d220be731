"""Memory of the gradient of Longtail Guidance through a decoder, with and without gradient checkpointing.

    python benchmarks/guidance_longtail.py [TAESD] [AutoencoderKL] [--side 512]
    python benchmarks/guidance_longtail.py --parts

The figure is the peak resident memory of one gradient above the start, each case in a separate process. The
classifier is the small one at 64 px. TAESD is that of $MEDLT_DATA/weights if the variable is set, else one of its
shape with random weights. AutoencoderKL has the shape of Stable Diffusion's and random weights. guidance.py measures
the time.

Target: at 512 px at most half with checkpointing.

--parts: CPU seconds of the parts of one guided step of 4 images of 128 px, beside an unguided step of the label UNet of
the configs (width 64, classifier-free guidance), the least of 4 rounds in turns.
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
from torch.nn.functional import avg_pool2d

from medlt.classify.epistemic import Epistemic, Members
from medlt.classify.networks import network
from medlt.classify.uncertainty import STATISTICS
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.decoded_signal import decoded_signal, displace_estimate
from medlt.diffusion.displacement import Displacement
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.rng import noise_like
from medlt.synthesis.longtail import differentiable_decoder, uncertainty_objective
from medlt.testing import constant_denoiser, tiny_autoencoder_kl, tiny_autoencoder_tiny

FINDINGS = 14
ROWS = {"TAESD": (1, 4), "AutoencoderKL": (1,)}
LARGE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "norm_num_groups": 32,
}  # fmt: skip
TAESD: dict[str, Any] = {
    "encoder_block_out_channels": (64,) * 4, "decoder_block_out_channels": (64,) * 4,
    "num_encoder_blocks": (1, 3, 3, 3), "num_decoder_blocks": (3, 3, 3, 1),
}  # fmt: skip


def taesd(dtype: torch.dtype = torch.float32, device: str = "cpu") -> AutoencoderCodec:
    """The tiny autoencoder of Stable Diffusion 1.x, or one of its shape."""
    folder = Path(os.environ.get("MEDLT_DATA", "")) / "weights" / "taesd_diffusers"
    fast: dict[str, Any] = {"device": device, "dtype": dtype, "channels_last": dtype != torch.float32}
    if folder.is_dir() and "MEDLT_DATA" in os.environ:
        return load_codec(folder, **fast)
    return AutoencoderCodec(tiny_autoencoder_tiny(**TAESD), **fast)


def epistemic(device: str = "cpu", side: int = 64) -> Epistemic:
    """The small classifier and a head of the default size, untrained: their cost is what counts."""
    net = network("small", FINDINGS).to(device)
    members = Members(12, net.head.in_features, 64, FINDINGS, 3.0, 0).to(device)
    return Epistemic(net, side, members, {"classifier": ""})


def one_gradient(kind: str, checkpointing: bool, rows: int, side: int) -> tuple[float, float]:
    """MiB of resident memory above the start at most, and seconds, of one guided step at `side` px."""
    codec = taesd() if kind == "TAESD" else AutoencoderCodec(tiny_autoencoder_kl(**LARGE), "cpu")
    decode = differentiable_decoder(codec, gradient_checkpointing=checkpointing)
    z = noise_like(range(rows), (4, side // 8, side // 8))
    objective = uncertainty_objective(
        epistemic(), STATISTICS["variance"], torch.ones(rows, FINDINGS).bool(), torch.zeros(rows, FINDINGS)
    )
    moves = Displacement({500: 0.1}, STABLE_DIFFUSION.abar())
    guidance = displace_estimate(decoded_signal(decode, objective), moves)
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
            cells = f"| {kind} | {rows} | {'yes' if checkpointing else 'no'} | {most:.0f} |"
            lines.append(f"{cells} {most / whole:.2f} | {spent:.1f} |")
    return lines


def parts(rounds: int = 4, rows: int = 4, side: int = 128) -> list[str]:
    """Lines of a table: a part of a guided step, milliseconds, and unguided steps that take as long."""
    backbone = LabelUNet(4, FINDINGS, width=64).eval().requires_grad_(False).backbone()
    z, labels = noise_like(range(rows), (4, side // 8, side // 8)), torch.eye(FINDINGS)[:rows]
    step = torch.no_grad()(backbone.guided(backbone.condition(labels), 3.5))
    targets = torch.ones(rows, FINDINGS).bool()
    objective = uncertainty_objective(epistemic(), STATISTICS["variance"], targets, torch.zeros(rows, FINDINGS))

    def slope(fn: Callable[[Tensor], Tensor], at: Tensor) -> None:
        at = at.detach().requires_grad_()
        torch.autograd.grad(fn(at).sum(), at)

    ways: dict[str, Callable[[], Any]] = {
        "unguided step, guidance_scale 3.5": lambda: step(z, 500),
        "classifier with its gradient": lambda: slope(lambda x: objective(x, 0), torch.rand(rows, 1, side, side)),
    }
    for dtype in (torch.float32, torch.bfloat16):
        decode, name = differentiable_decoder(taesd(dtype)), str(dtype).removeprefix("torch.")
        ways[f"TAESD with its gradient, {name}"] = lambda decode=decode: slope(decode, z)  # type: ignore[misc]
        ways[f"the same of latents at half size, {name}"] = lambda decode=decode: slope(  # type: ignore[misc]
            decode, avg_pool2d(z, 2)
        )
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:
                best[name] = min(best[name], time.process_time() - began)
    unguided = best["unguided step, guidance_scale 3.5"]
    lines = ["| part | ms | unguided steps |", "|---|---:|---:|"]
    return [*lines, *(f"| {name} | {1e3 * spent:.0f} | {spent / unguided:.2f} |" for name, spent in best.items())]


def main() -> None:
    """Every decoder, or one case of one in this process."""
    read = argparse.ArgumentParser()
    read.add_argument("kinds", nargs="*", help="TAESD, AutoencoderKL; default: both")
    read.add_argument("--side", type=int, default=512)
    read.add_argument("--parts", action="store_true")
    read.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = read.parse_args()
    if args.parts:
        table("guidance_parts", [f"{torch.get_num_threads()} threads.", "", *parts()])
    elif args.one:
        kind, checkpointing, rows, side = args.one
        print(*one_gradient(kind, checkpointing == "1", int(rows), int(side)))
    else:
        table("guidance_memory", memory_rows(args.kinds or list(ROWS), args.side))


if __name__ == "__main__":
    main()
