"""Every figure that needs a GPU, in one session: networks, sampling, training steps, and a whole run.

    bash benchmarks/gpu.sh [--minutes 9] [--tiny]

| part | figure |
|---|---|
| ceiling | TFLOP/s of a square matrix product, float32 and bfloat16: what the chip gives at most |
| networks | TFLOP/s of UNet and VAE decode by rows and precision, and their share of the ceiling |
| sampling | images/s of 5 steps from latents and 75 from noise, beside diffusers' 75; share of time the GPU was busy |
| training | seconds of a fine-tuning step (LoRA, full) and of a private step, and of the same ordinary step |
| run | images/s and seconds per stage of `medlt augment demo/demo` on the device; share of time the GPU was busy |

Networks have the sizes of Stable Diffusion 1.5 at 512 px and are untrained, so nothing is downloaded. A part that fails
or for which no time is left becomes one line of the table, and the others go on. With --tiny the same code runs with
tiny networks, on a CPU if there is no GPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from common import RESULTS, table
from privacy import Task, stepper
from sampling import Ours, Stock
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from medlt.diffusion.adapt import Finetuning, FullFinetuning, LoraFinetuning, make_trainable
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.rng import noise_like
from medlt.training.runtime import Runtime
from medlt.training.settings import Training

Lines = list[str]
FINDINGS = ("Cardiomegaly", "Effusion", "Hernia")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Scale:
    """Sizes of networks and batches; the defaults are those of a GPU."""

    model: dict[str, Any] = field(default_factory=lambda: {"version": "1.5", "vae": (128, 256, 512, 512)})
    side: int = 512
    product: int = 8192
    rows: tuple[int, ...] = (2, 16, 64)
    images: int = 32
    batch: int = 16
    units: int = 8
    calls: int = 5
    steps: int = 75
    run: tuple[str, ...] = ("size=128", "threads=8", "targets.max_per_finding=64")


TINY = Scale(
    model={"version": "1.5", "widths": (32, 32), "text_width": 32, "text_layers": 1, "vae": (32, 32)},
    side=32, product=128, rows=(4,), images=4, batch=2, units=2, calls=1, steps=3,
    run=(
        *("size=32", "threads=1", "data.patients=60", "data.size=64", "data.imbalance=8", "codec.width=8"),
        *("codec.steps=4", "sparse.groups=4", "sparse.vocabulary=4", "sparse.generations=2", "sparse.width=8"),
        *("denoiser.width=8", "denoiser.steps=4", "denoiser.precision=fp32", "method.num_inference_steps=15"),
        *("method.strength=0.2", "targets.tail_below=12", "targets.head_above=20", "targets.count=12"),
        *("targets.max_per_finding=2", "checks.folds=2", "classifier.size=32", "classifier.steps=4"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Session:
    """Device, sizes, a folder for files, and the folder of the model."""

    device: str
    scale: Scale
    work: Path
    model: Path

    @property
    def latent(self) -> tuple[int, int, int]:
        """Shape of a latent: factor 8 in full, 2 ** (levels - 1) in general."""
        factor = 2 ** (len(self.scale.model["vae"]) - 1)
        return 4, self.scale.side // factor, self.scale.side // factor

    def wait(self) -> None:
        """Wait for queued work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, fn: Callable[[], Any], calls: int | None = None) -> float:
        """Return the shortest time of some calls, after one that does not count."""
        spent: list[float] = []
        for _ in range(1 + (calls or self.scale.calls)):
            self.wait()
            began = time.perf_counter()
            fn()
            self.wait()
            spent.append(time.perf_counter() - began)
        return min(spent[1:])

    def busy(self, fn: Callable[[], Any]) -> float:
        """Return the share of one call during which kernels ran; on a CPU, operators."""
        cuda = self.device == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
            self.wait()
            began = time.perf_counter()
            fn()
            self.wait()
            spent = time.perf_counter() - began
        kind = "self_device_time_total" if cuda else "self_cpu_time_total"
        return sum(float(getattr(event, kind)) for event in seen.key_averages()) / 1e6 / spent

    def ours(self, dtype: torch.dtype) -> Ours:
        """Return medlt's sampler; its parts are not timed, so nothing waits for the GPU."""
        rows = self.scale.images if self.device == "cuda" else None  # on a CPU rows are for calls in other threads
        made = Ours(self.model, self.device, dtype, self.scale.side, rows)
        made.shape, made.clock.device = self.latent, "cpu"
        return made


def ceiling(session: Session) -> Lines:
    """TFLOP/s of a square matrix product."""
    lines = ["| product | TFLOP/s |", "|---|---:|"]
    for name in DTYPES:
        lines.append(f"| {name}, {session.scale.product} x {session.scale.product} | {_ceiling(session, name):.3g} |")
    return lines


def _ceiling(session: Session, name: str) -> float:
    n = session.scale.product
    a, b = (torch.randn(n, n, device=session.device, dtype=DTYPES[name]) for _ in range(2))
    return 2 * n**3 / session.seconds(lambda: a @ b, 10) / 1e12


@torch.no_grad()
def networks(session: Session) -> Lines:
    """TFLOP/s of UNet and VAE decode, counted by torch."""
    lines = ["| network | precision | rows | ms | TFLOP/s | of the ceiling |", "|---|---|---:|---:|---:|---:|"]
    for name, dtype in DTYPES.items():
        ours, most = session.ours(dtype), _ceiling(session, name)
        for rows in session.scale.rows:
            z = noise_like(range(rows), session.latent).to(session.device)
            t = torch.full((rows,), 500, device=session.device)
            condition = ours.backbone.condition.null.to(session.device).expand(rows, -1, -1)
            calls = {"UNet": partial(ours.backbone.network, z, t, condition), "VAE": partial(ours.codec.decode, z)}
            for network, call in calls.items():
                with FlopCounterMode(display=False) as counted:
                    call()
                spent = session.seconds(call)
                rate = counted.get_total_flops() / spent / 1e12
                lines.append(f"| {network} | {name} | {rows} | {1e3 * spent:.1f} | {rate:.3g} | {rate / most:.0%} |")
    return lines


@torch.no_grad()
def sampling(session: Session) -> Lines:
    """Images a second from latents or noise to PNG files, in bfloat16."""
    count, full, ours = session.scale.images, session.scale.steps, session.ours(torch.bfloat16)
    z, labels = noise_like(range(count), session.latent), torch.ones(count, len(FINDINGS))

    def from_noise_(interval: tuple[float, float]) -> None:
        steps = scheduler("ddim", full, ours.backbone.noise)
        start = from_noise(z.to(session.device), steps)
        condition = ours.backbone.condition(labels).to(session.device)
        ours.decode(sample(ours.backbone.guided(condition, 3.5, interval), start, steps))

    stock = Stock(session.model, session.device, torch.bfloat16)
    stock.clock.device = "cpu"
    side = {"height": session.scale.side, "width": session.scale.side}
    ways: dict[str, Callable[[], Any]] = {
        "medlt, 5 steps from latents, PNG written": lambda: ours(z, labels, 5, session.work),
        f"medlt, {full} steps from noise": lambda: from_noise_((0.0, 1.0)),
        f"medlt, {full} steps from noise, guidance_interval 0.2 to 0.8": lambda: from_noise_((0.2, 0.8)),
        f"diffusers, {full} steps from noise": lambda: stock.noise(
            ["chest radiograph"] * count, num_inference_steps=full, guidance_scale=3.5, **side
        ),
    }
    spent = {name: session.seconds(way, 1) for name, way in ways.items()}
    most = spent[f"diffusers, {full} steps from noise"]
    lines = [f"| {count} images | images/s | times diffusers | busy |", "|---|---:|---:|---:|"]
    for name, way in ways.items():
        lines.append(f"| {name} | {count / spent[name]:.2f} | {most / spent[name]:.2f} | {session.busy(way):.0%} |")
    return lines


def training(session: Session) -> Lines:
    """Seconds of a step of fine-tuning, and of a private step beside the ordinary one."""
    lines = ["| step | rows | seconds |", "|---|---:|---:|"]
    rows = session.scale.batch
    hows: dict[str, Finetuning] = {"LoRA": LoraFinetuning(rank=4), "full": FullFinetuning()}
    for name, how in hows.items():
        lines.append(f"| fine-tuning, {name}, bfloat16 | {rows} | {_finetuning(session, how):.3f} |")
    for mode in ("plain", "bookkeeping"):
        what = "private" if mode != "plain" else "ordinary"
        spent = _private(session, mode)
        lines.append(f"| {what}, LoRA, bfloat16, every image a unit | {session.scale.units} | {spent:.3f} |")
    return lines


def _finetuning(session: Session, how: Finetuning, steps: int = 6) -> float:
    """Return the seconds of the fastest step of train_backbone on cached latents."""
    rows, marks = session.scale.batch, list[float]()
    z, labels = noise_like(range(2 * rows), session.latent), torch.ones(2 * rows, len(FINDINGS)).numpy()
    uids = [str(i) for i in range(2 * rows)]
    data = LabelledLatents(lambda some: z[[int(uid) for uid in some]], uids, labels, "noise")

    def after(stage: str, done: int, total: int) -> None:
        session.wait()
        marks.append(time.perf_counter())

    runtime = Runtime(session.device, "bf16", None, 0, after)
    with tempfile.TemporaryDirectory() as out:
        train_backbone(
            load_stable_diffusion(session.model).backbone(Prompts(FINDINGS)), data, folder=Path(out),
            training=Training(steps=steps, batch_size=rows, checkpoint_every=None), finetuning=how, runtime=runtime,
        )  # fmt: skip
    return min(after - before for before, after in pairwise(marks[1:]))


def _private(session: Session, mode: str) -> float:
    """Return the seconds of a step of LoRA on the UNet, one unit an image; mode "plain" is the ordinary step."""
    backbone = load_stable_diffusion(session.model).backbone(Prompts(FINDINGS))
    make_trainable(backbone.network, LoraFinetuning(rank=4), 0)
    network, rows = backbone.network.to(session.device).train(), session.scale.units
    x, y = (noise_like(range(rows), session.latent).to(session.device) for _ in range(2))
    t = torch.full((rows,), 500, device=session.device)
    condition = backbone.condition(torch.ones(rows, len(FINDINGS))).to(session.device)

    def losses() -> Tensor:
        loss: Tensor = (network(x, t, condition).float() - y).pow(2).flatten(1).mean(1)
        return loss

    step, end = stepper(Task(network, losses, half=True), mode, 1)
    try:
        return session.seconds(step, 3)
    finally:
        end()


def whole_run(session: Session) -> Lines:
    """The demo's method on the device: DICOM files, codec, sparse code, denoiser, images, checks, report."""
    out = session.work / "run"
    command = [sys.executable, "-W", "ignore", "-m", "medlt", "augment", "demo/demo", "--out", str(out)]
    with _utilisation(session.device) as seen:
        subprocess.run(
            [*command, f"device={session.device}", *session.scale.run], check=True, capture_output=True, text=True
        )
    record = json.loads((out / "run.json").read_text())
    planned, spent = record["counts"]["planned"], record["seconds"]
    busy = f"{sum(seen) / len(seen):.0f} %" if seen else "not measured"
    alone, whole = planned / spent["synthesis"], planned / sum(spent.values())
    lines = [
        f"{planned} images: {alone:.2f} images/s of synthesis, {whole:.2f} of the whole run. GPU busy: {busy}.",
        "",
        "| stage | seconds |",
        "|---|---:|",
    ]
    return [*lines, *(f"| {name} | {value:.1f} |" for name, value in spent.items())]


@contextmanager
def _utilisation(device: str) -> Any:
    """Yield the utilisation of the GPU in percent, sampled five times a second by nvidia-smi; empty without it."""
    seen: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200"]
    try:
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if device == "cuda" else None
    except FileNotFoundError:
        watch = None
    if watch is None:
        yield seen
        return
    lines = watch.stdout or ()
    reader = threading.Thread(target=lambda: seen.extend(float(line) for line in lines if line.strip().isdigit()))
    reader.start()
    try:
        yield seen
    finally:
        watch.terminate()
        reader.join()


PARTS: dict[str, Callable[[Session], Lines]] = {
    "ceiling": ceiling,
    "networks": networks,
    "sampling": sampling,
    "training": training,
    "run": whole_run,
}


def measured(name: str, session: Session) -> tuple[Lines, bool]:
    """Return the lines of a part, and whether it ran; a failure is one line of the table and a traceback on stderr."""
    try:
        return PARTS[name](session), True
    except Exception as error:
        traceback.print_exc()
        said = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip().splitlines()
        return [f"Failed: {said[-1]}"], False
    finally:
        if session.device == "cuda":
            torch.cuda.empty_cache()


def main() -> int:
    """Every part, until the time is over; 1 if one failed."""
    read = argparse.ArgumentParser()
    read.add_argument("--tiny", action="store_true", help="tiny networks, on a CPU if there is no GPU")
    read.add_argument("--minutes", type=float, default=9.0, help="no part begins later than this")
    read.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    read.add_argument("--out", type=Path, default=RESULTS, help="folder of the table gpu.md")
    args = read.parse_args()
    if not (gpu := torch.cuda.is_available()) and not args.tiny:
        print("no GPU here; --tiny runs the same code with tiny networks on the CPU", file=sys.stderr)
        return 2
    began, failed = time.perf_counter(), False
    warnings.simplefilter("ignore")
    diffusers.utils.logging.disable_progress_bar()
    scale = TINY if args.tiny else Scale()
    chip = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if gpu else "no GPU"
    head = [
        f"{chip}. Networks of {'a tiny size: these figures mean nothing' if args.tiny else 'Stable Diffusion 1.5'}."
    ]
    lines = list(head)
    with tempfile.TemporaryDirectory() as place:
        session = Session("cuda" if gpu else "cpu", scale, Path(place), untrained(Path(place) / "model", **scale.model))
        for name in args.parts:
            lines += ["", f"## {name}", ""]
            if time.perf_counter() - began > 60 * args.minutes:
                lines.append("Not run: no time was left.")
                continue
            new, ran = measured(name, session)
            failed |= not ran
            lines += [*new, "", f"After {time.perf_counter() - began:.0f} s."]
            table("gpu", lines, args.out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
