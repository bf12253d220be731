"""Training images/s of `fit` beside a plain PyTorch loop: same network, same batch, same number of steps.

    python benchmarks/training.py [--network small --size 64] [--augment light] [--steps 60] [--device cpu]
    python benchmarks/training.py --network densenet121 --size 224 --batch 64 --device cuda --workers 8

The plain loop is a first version: a Dataset of 8-bit images in memory, the same augmentation of one image at a time
in a DataLoader of `--workers` processes, float32, AdamW, no moving average. `fit` does more in a step (warm-up and
cosine, clipped gradients, a moving average) and computes in bfloat16 where CPU or GPU support it. "plain bfloat16" is
the plain loop with autocast and channels last. The loops take turns; the best round counts, without evaluations.
"busy" is the share of time in which `fit` does not wait for a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from medlt.classify.augment import augmentation
from medlt.classify.classifier import Pace
from medlt.classify.networks import network
from medlt.classify.train import TrainingSet, fit_classifier
from medlt.rng import torch_generator
from medlt.store import Store
from medlt.training.runtime import Runtime

FINDINGS = 14


def images(rows: int, size: int) -> TrainingSet:
    """Noise with labels one in ten."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (rows, 1, size, size), dtype=np.uint8))
    labels = (rng.random((rows, FINDINGS)) < 0.1).astype(np.float32)
    return TrainingSet(pixels, labels, np.ones(rows, np.float32), tuple(map(str, range(rows))))


class Plain(Dataset[tuple[Tensor, Tensor]]):
    """One augmented image and its labels."""

    def __init__(self, rows: TrainingSet, augment: str) -> None:
        self.rows, self.augment = rows, augmentation(augment)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.augment(self.rows.images[i : i + 1].float() / 255, torch_generator("benchmark", i))
        return image[0], torch.from_numpy(self.rows.labels[i])


def plain(rows: TrainingSet, args: argparse.Namespace, half: bool) -> Pace:
    """The plain loop."""
    loader = DataLoader(Plain(rows, args.augment), args.batch, shuffle=True, num_workers=args.workers, drop_last=True)
    net = network(args.network, FINDINGS).to(args.device).train()
    net = net if half else net.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    context = torch.autocast(args.device.split(":")[0], torch.bfloat16) if half else contextlib.nullcontext()
    done, waited, begun = 0, 0.0, time.perf_counter()
    while done < args.steps:
        waiting_since = time.perf_counter()
        for pixels, labels in loader:
            waited += time.perf_counter() - waiting_since
            with context:
                logits = net(pixels.to(args.device))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits.float(), labels.to(args.device)).backward()
            optimizer.step()
            done += 1
            if done == args.steps:
                break
            waiting_since = time.perf_counter()
    if args.device != "cpu":
        torch.cuda.synchronize()
    spent = time.perf_counter() - begun
    return Pace(args.steps * args.batch / spent, 1 - waited / spent)


def ours(rows: TrainingSet, args: argparse.Namespace) -> Pace:
    """`fit`, evaluated once, at the end."""
    options = {"batch_size": args.batch, "augment": args.augment, "network": args.network, "evaluate_every": args.steps}
    with tempfile.TemporaryDirectory() as folder:
        val = rows.take(rows.uids[:8])
        runtime = Runtime(args.device, "fp32", None, 0)
        pace = fit_classifier(rows, val, runtime=runtime, store=Store(Path(folder)), steps=args.steps, **options).pace
    assert pace is not None
    return pace


def main() -> None:
    """Run the loops in turns, print and keep the table."""
    parser = argparse.ArgumentParser()
    for name, usual in {"network": "small", "augment": "light", "device": "cpu"}.items():
        parser.add_argument(f"--{name}", default=usual)
    for name, usual in {"size": 64, "batch": 32, "steps": 60, "rounds": 2, "workers": 0, "rows": 2048}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    args = parser.parse_args()
    rows, loops = images(args.rows, args.size), {"plain float32": False, "plain bfloat16": True}
    measured: dict[str, list[Pace]] = {name: [] for name in (*loops, "medlt")}
    for _ in range(args.rounds):
        for name, half in loops.items():
            measured[name].append(plain(rows, args, half))
        measured["medlt"].append(ours(rows, args))
    best = {name: max(paces, key=lambda pace: pace.images_per_second) for name, paces in measured.items()}
    lines = [f"{args.network}, {args.size} px, batch {args.batch}, augment {args.augment}, {torch.get_num_threads()} "]
    lines = [lines[0] + f"threads, device {args.device}, {args.workers} loader processes for the plain loop", ""]
    lines += ["| loop | images/s | medlt is faster by | busy |", "|---|---|---|---|"]
    for name, pace in best.items():
        ratio = best["medlt"].images_per_second / pace.images_per_second
        lines.append(f"| {name} | {pace.images_per_second:.1f} | {ratio:.2f} x | {100 * pace.busy:.1f} % |")
    table(f"training_{args.network}_{args.size}_{args.device.split(':')[0]}_{args.augment}", lines)


if __name__ == "__main__":
    main()
