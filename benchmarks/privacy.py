"""A private step beside an ordinary one: same network, same rows at once, in the same run.

    python benchmarks/privacy.py [--rows 32] [--multiplicity 1] [--rounds 3] [--network lora unet densenet] [--memory]

A step is forward, backward and AdamW. A private step takes the clipped sum of the units' gradients (by each
`grad_sample_mode`) and adds noise from the operating system. One unit has `--multiplicity` rows. The modes take
turns; the best round counts. Figures are ratios to the ordinary step. `--memory` measures the peak memory of a
step in a separate process, above the memory before the first step. `--keep` writes the table. Networks: LoRA of rank 8
on the attention of a latent UNet with cross-attention; the default denoiser (`LabelUNet`), in full; DenseNet-121 with
group norms, in full.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import table
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.privacy.dpsgd.gradients import GRAD_SAMPLE_MODES, PerUnit
from medlt.privacy.dpsgd.randomness import Secure
from medlt.types import GradSampleMode, InputError

Losses = Callable[[], Tensor]


@dataclass(frozen=True)
class Task:
    """A network in training mode and the losses [rows] of one batch."""

    network: nn.Module
    losses: Losses
    half: bool

    def loss(self) -> Tensor:
        """Compute in bfloat16 if `half`."""
        where = next(self.network.parameters()).device.type
        with torch.autocast(where, torch.bfloat16, enabled=self.half):
            return self.losses().float()


class Wrapped(nn.Module):
    """A UNet with cross-attention as a child, where LoRA is put."""

    def __init__(self) -> None:
        from diffusers import UNet2DConditionModel

        super().__init__()
        self.unet = UNet2DConditionModel(
            in_channels=4, out_channels=4, sample_size=16, layers_per_block=1, block_out_channels=(64, 128),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=64, attention_head_dim=8,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8,
        )  # fmt: skip


def lora(rows: int, device: str) -> tuple[nn.Module, Losses]:
    """Adapters on attention."""
    from medlt.diffusion.adapt import LoraFinetuning, make_trainable

    net: Any = Wrapped()
    make_trainable(net, LoraFinetuning(rank=8), 0)
    net.to(device)
    x, y, condition = (torch.randn(rows, *shape, device=device) for shape in ((4, 16, 16), (4, 16, 16), (8, 64)))
    t = torch.randint(0, 1000, (rows,), device=device)
    return net, lambda: (net.unet(x, t, condition).sample.float() - y).pow(2).flatten(1).mean(1)


def unet(rows: int, device: str) -> tuple[nn.Module, Losses]:
    """The default denoiser, 16 x 16 latents."""
    from medlt.diffusion.labels import LabelUNet

    net = LabelUNet(channels=4, findings=14).to(device)
    x, y = torch.randn(2, rows, 4, 16, 16, device=device)
    t, condition = torch.randint(0, 1000, (rows,), device=device), torch.ones(rows, 29, device=device)
    return net, lambda: (net(x, t, condition).float() - y).pow(2).flatten(1).mean(1)


def densenet(rows: int, device: str) -> tuple[nn.Module, Losses]:
    """A classifier, 224 px."""
    from monai.networks.nets import DenseNet121

    from medlt.privacy.dpsgd.preflight import prepare

    net = DenseNet121(spatial_dims=2, in_channels=1, out_channels=14).to(device)
    prepare(net)
    x, y = torch.randn(rows, 1, 224, 224, device=device), (torch.rand(rows, 14, device=device) < 0.1).float()
    return net, lambda: F.binary_cross_entropy_with_logits(net(x).float(), y, reduction="none").mean(1)


NETWORKS = {"lora": lora, "unet": unet, "densenet": densenet}


def made(name: str, args: argparse.Namespace) -> Task:
    """A fresh network, its weights from a seed."""
    torch.manual_seed(0)
    rows = max(1, args.rows // 4) if name == "densenet" else args.rows
    network, losses = NETWORKS[name](rows, args.device)
    if args.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Task(network.train(), losses, args.half)


def stepper(task: Task, mode: str, multiplicity: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """(one step of training, what ends it). "plain" is the ordinary step."""
    weights = [weight for weight in task.network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, fused=True)
    if mode == "plain":

        def plain() -> None:
            task.loss().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return plain, lambda: None
    with torch.no_grad():
        rows = len(task.loss())
    groups, gradients, noise = (
        torch.arange(rows) // multiplicity,
        PerUnit(task.network, 1.0, GradSampleMode(mode)),
        Secure(),
    )

    def private() -> None:
        gradients.clear()
        gradients.accumulate(task.loss, groups)
        for weight in weights:
            summed: Tensor = weight.summed_grad  # type: ignore[attr-defined]
            weight.grad = (summed.double() + noise.normal(weight.shape, torch.float64).to(weight.device)).float() / rows
        optimizer.step()
        optimizer.zero_grad()

    return private, gradients.close


def seconds(step: Callable[[], None], device: str) -> float:
    """Of one step."""
    if device != "cpu":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def timed(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Best seconds of a step by mode; modes that do not support the network are left out."""
    task = made(name, args)
    best: dict[str, float] = {}
    for turn in range(args.rounds):
        for mode in ("plain", *args.grad_sample_modes):
            if turn and mode not in best:
                continue
            try:
                step, end = stepper(task, mode, args.multiplicity)
                step()
                best[mode] = min(best.get(mode, float("inf")), *(seconds(step, args.device) for _ in range(2)))
                end()
            except InputError as error:
                print(f"{name}, {mode}: {error}")
    return best


def _kilobytes(field: str) -> int:
    """Of Linux' account of this process: VmRSS now, VmHWM at most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _peak(name: str, mode: str, args: argparse.Namespace, answer: Any) -> None:
    torch.set_num_threads(args.threads)
    task = made(name, args)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    held = _kilobytes("VmRSS")
    step, _ = stepper(task, mode, args.multiplicity)
    for _ in range(2):
        step()
    cpu = args.device == "cpu"
    answer.put((_kilobytes("VmHWM") - held) / 1024 if cpu else torch.cuda.max_memory_allocated() / 2**20)


def peak(name: str, mode: str, args: argparse.Namespace) -> float:
    """MiB above the network, at most, of two steps in a process of their own."""
    context = multiprocessing.get_context("spawn")
    answer: Any = context.Queue()
    process = context.Process(target=_peak, args=(name, mode, args, answer))
    process.start()
    process.join()
    return float(answer.get()) if process.exitcode == 0 else float("nan")


def main() -> None:
    """Measure times, and memory with --memory; print and keep the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--grad-sample-modes", nargs="+", default=[mode.value for mode in GRAD_SAMPLE_MODES])
    for name, usual in {"rows": 32, "multiplicity": 1, "rounds": 3, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    for flag in ("memory", "half", "channels-last", "keep"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        f"{args.rows} rows at once (DenseNet: a quarter), {args.multiplicity} a unit, {args.threads} threads, device"
    ]
    lines[0] += f" {args.device}, {'bfloat16' if args.half else 'float32'}. Private over ordinary step."
    lines += ["", "| network | grad_sample_mode | ms | time | peak MiB | memory |", "|---|---|---|---|---|---|"]
    for name in args.network:
        measured = timed(name, args)
        memory = {mode: peak(name, mode, args) for mode in measured} if args.memory else {}
        for mode, spent in measured.items():
            cells = f"| {name} | {mode} | {1e3 * spent:.0f} | {spent / measured['plain']:.2f} x "
            used = f"{memory[mode]:.0f} | {memory[mode] / memory['plain']:.2f} x" if memory else "- | -"
            lines.append(f"{cells}| {used} |")
    if args.keep:
        table("privacy", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
