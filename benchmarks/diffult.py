"""The cost of DiffuLT's two losses: a training step without them, with each, and with both, in turns.

    python benchmarks/diffult.py [--width 64] [--side 32] [--batch 8] [--rounds 12] [--precision fp32] [--device cpu]

A step is complete: reading latents, noise, forward, losses, backward, clipping, AdamW, moving average. The label UNet
has three levels. phi is an untrained latent classifier, since its time does not depend on its weights. The in-band
loss is used in one batch of four; steps with and without it are timed separately and weighted, so that chance does
not change the figure. Seconds are medians over the rounds, since the number of rows with a loss differs from step to
step. On a CPU they are CPU seconds of the process.

Targets: class balancing at most 2.1 times a plain step, the in-band loss on a quarter of the batches at most 1.3
times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from common import table
from torch import Tensor

from medlt.classify.latents import LatentClassifier, latent_network
from medlt.diffusion.cbdm import ClassBalancing
from medlt.diffusion.in_band_loss import AidLoss
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.losses import ExtraLoss, NoisedLoss, Rows
from medlt.rng import batch_indices, noise_like, torch_generator

IMAGES, FINDINGS, SHARE = 64, 8, 0.25
TARGETS = {"class balancing": 2.1, "in-band loss on a quarter of batches": 1.3}


def labels() -> Tensor:
    """A long tail: finding c in every (c + 2)th row, [IMAGES,FINDINGS]."""
    rows = torch.arange(IMAGES)
    return torch.stack([rows % (c + 2) == 0 for c in range(FINDINGS)], 1).float()


def now(device: str) -> float:
    """Seconds: of this process's CPU time, or on a GPU of the wall clock after all queued work."""
    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Step:
    """One training step after the other of a network of its own, with these further losses."""

    def __init__(self, args: argparse.Namespace, *extra: ExtraLoss) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = LabelUNet(4, FINDINGS, width=args.width, levels=3)
        self.net, self.args, self.condition = net.to(args.device).train(), args, LabelVector(FINDINGS)
        self.loss = NoisedLoss("v_prediction", self.condition.null, low=0, extra_losses=extra)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        self.average = torch.optim.swa_utils.AveragedModel(self.net)
        self.latents, self.labels, self.done = noise_like(range(IMAGES), (4, args.side, args.side)), labels(), 0

    def __call__(self) -> float:
        """Seconds it took."""
        began = now(self.args.device)
        rows = torch.from_numpy(batch_indices(IMAGES, self.args.batch, self.done))
        y, draw = self.labels[rows], torch_generator("benchmark", self.done)
        half = self.args.precision == "bf16"
        with torch.autocast(self.args.device.split(":")[0], torch.bfloat16, enabled=half):
            value = self.loss(self.net, self.latents[rows], self.condition(y), 0.1, draw, Rows(labels=y))
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.net)
        self.done += 1
        return now(self.args.device) - began


def kinds(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """A step of each kind."""
    phi = LatentClassifier(latent_network(4, FINDINGS).to(args.device).eval().requires_grad_(False), {})
    balancing = ClassBalancing(LabelVector(FINDINGS), labels().numpy())
    limits, counts = [5.0] * FINDINGS, labels().sum(0).tolist()
    on, off = (AidLoss(phi.features, phi.digest, limits, counts, share=share) for share in (1.0, 0.0))
    return {
        "plain": Step(args),
        "class balancing": Step(args, balancing),
        "in-band on": Step(args, on),
        "in-band off": Step(args, off),
        "both on": Step(args, balancing, on),
    }


def main() -> None:
    """All kinds in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    steps = kinds(args)
    spent = [{name: step() for name, step in steps.items()} for _ in range(args.rounds + 1)][1:]
    middle = {name: median(turn[name] for turn in spent) for name in steps}
    both = SHARE * middle["both on"] + (1 - SHARE) * middle["class balancing"]
    seconds = {
        "plain": middle["plain"],
        "class balancing": middle["class balancing"],
        "in-band loss on a quarter of batches": SHARE * middle["in-band on"] + (1 - SHARE) * middle["in-band off"],
        "in-band loss on every batch": middle["in-band on"],
        "class balancing, in-band loss on a quarter": both,
    }
    lines = [
        f"UNet {args.width} channels wide, latents 4x{args.side}x{args.side}, batch {args.batch}, {args.precision}, "
        f"{args.device}, {torch.get_num_threads()} threads, median of {args.rounds}.",
        "",
        "| training step | seconds | times a plain one | target |",
        "|---|---:|---:|---:|",
    ]
    for name, value in seconds.items():
        target = f"<= {TARGETS[name]}" if name in TARGETS else ""
        lines.append(f"| {name} | {value:.3f} | {value / middle['plain']:.2f} | {target} |")
    table("diffult", lines)


if __name__ == "__main__":
    main()
