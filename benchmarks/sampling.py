"""Few-step sampling from latents beside diffusers' own img2img pipeline: same weights, same steps, same batch.

    python benchmarks/sampling.py [--rounds 3] [--device cpu] [--size small] [--interval 0.2 0.8]
    python benchmarks/sampling.py --device cuda --size sd15

One batch from images or latents to PNG files is timed, in turns: diffusers' StableDiffusionImg2ImgPipeline in float32
(its default) and in `best_dtype`, and medlt in both. diffusers gets PIL images and prompts and encodes both at each
call; Pillow saves its images. medlt starts from cached latents and cached text, guides in `guidance_interval` (default:
that of fusion), and writes as its fusion recipe does. So images/s compares two workflows; "UNet" and "decode" compare
the same work. Ratios are those of the rounds: their median, and the least and most. On a CPU seconds are CPU seconds
of the process, which a shared machine disturbs least; OMP_NUM_THREADS=1 makes them those of one quiet core. gpu.py
measures the same on a GPU, with the share of the chip that is used.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import psutil
import torch
from common import table
from PIL import Image
from torch import Tensor

from medlt.config import Fusion
from medlt.data.convert.encode import png
from medlt.diffusion import schedulers
from medlt.diffusion.codec import load_codec
from medlt.diffusion.decode import Decoder
from medlt.diffusion.placement import best_dtype, place
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.sampler import from_latent, sample
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.files import write_bytes
from medlt.rng import noise_like
from medlt.writer import to_uint8

SIZES: dict[str, dict[str, Any]] = {
    "small": {"version": "2.1", "widths": (64, 128, 256, 256), "text_width": 256, "text_layers": 4,
              "vae": (32, 64, 128, 128), "side": 256},
    "mini": {"version": "2.1", "widths": (64, 128, 256, 256), "text_width": 256, "text_layers": 4,
             "vae": (32, 64, 128, 128), "side": 128},
    "sd15": {"version": "1.5", "vae": (128, 256, 512, 512), "side": 512},
}  # fmt: skip
FINDINGS = ("Cardiomegaly", "Effusion", "Hernia")
FULL, WEIGHT = 75, 3.5
PARTS = ("text", "VAE encode", "UNet", "decode", "PNG", "write")


def clock(device: str) -> float:
    """Seconds: of this process's CPU time, or on a GPU of the wall clock."""
    return time.perf_counter() if device == "cuda" else time.process_time()


class Clock:
    """Seconds of named parts; a part that runs inside another is taken out of it."""

    def __init__(self, device: str) -> None:
        self.device, self.spent, self._open, self._since = device, Counter[str](), list[str](), 0.0

    def _mark(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = clock(self.device)
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time this block as `name`."""
        self._mark()
        self._open.append(name)
        yield
        self._mark()
        self._open.pop()

    def watch(self, thing: Any, method: str, name: str) -> None:
        """Time every call of thing.method as `name`."""
        inner = getattr(thing, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(thing, method, timed)


@contextmanager
def peak_memory(device: str, peaks: list[int]) -> Iterator[None]:
    """Append the most bytes above the start: of the allocator on a GPU, of the process (sampled) on a CPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        peaks.append(torch.cuda.max_memory_allocated() - before)
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    process, done = psutil.Process(), threading.Event()
    sizes = [process.memory_info().rss]

    def sample_memory() -> None:
        while not done.wait(0.01):
            sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=sample_memory)
    watcher.start()
    yield
    done.set()
    watcher.join()
    peaks.append(max(sizes) - sizes[0])


class Stock:
    """diffusers' image-to-image pipeline, and its text-to-image one for `from_noise`."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        kind = diffusers.StableDiffusionImg2ImgPipeline
        self.pipe = kind.from_pretrained(folder, safety_checker=None, dtype=dtype).to(device)
        settings = self.pipe.scheduler.config
        self.pipe.scheduler = diffusers.DDIMScheduler.from_config(settings, timestep_spacing="trailing")
        self.pipe.set_progress_bar_config(disable=True)
        self.noise = diffusers.StableDiffusionPipeline(**self.pipe.components, requires_safety_checker=False)
        self.noise.set_progress_bar_config(disable=True)
        self.clock = Clock(device)
        self.clock.watch(self.pipe, "encode_prompt", "text")
        self.clock.watch(self.pipe.vae, "encode", "VAE encode")
        self.clock.watch(self.pipe.unet, "forward", "UNet")
        self.clock.watch(self.pipe.vae, "decode", "decode")

    def __call__(self, images: Tensor, prompts: list[str], steps: int, folder: Path) -> None:
        """Images [B,1,H,W] refined by the last steps, written to folder."""
        pictures = [Image.fromarray(one).convert("RGB") for one in to_uint8(images)]
        seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        with self.clock.part("rest"):
            made = self.pipe(
                prompts, pictures, strength=(steps + 1e-6) / FULL, num_inference_steps=FULL, guidance_scale=WEIGHT,
                generator=seeds,
            ).images  # fmt: skip
        with self.clock.part("PNG"):  # Pillow encodes and writes in one call
            for i, image in enumerate(made):
                image.convert("L").save(folder / f"{i}.png")


class Ours:
    """medlt from cached latents, sequentially, so that its parts can be timed."""

    def __init__(
        self, folder: Path, device: str, dtype: torch.dtype, side: int, rows: int | None,
        interval: tuple[float, float] = Fusion().guidance_interval,
    ) -> None:  # fmt: skip
        self.interval = interval
        prompts = Prompts(FINDINGS)
        fast = dtype != torch.float32
        backbone = load_stable_diffusion(folder).backbone(prompts)
        self.backbone = place(backbone, device=device, dtype=dtype, channels_last=fast and rows is not None, rows=rows)
        self.codec = load_codec(folder / "vae", device, dtype, channels_last=fast)
        self.decode, self.device, self.shape = Decoder(self.codec), device, (4, side // 8, side // 8)
        self.clock = Clock(device)

    def __call__(self, z: Tensor, labels: Tensor, steps: int, folder: Path) -> None:
        """Latents [B,C,h,w] refined by the last steps, written to folder."""
        z = z.to(self.device)
        with self.clock.part("text"):
            condition = self.backbone.condition(labels).to(self.device)
        with self.clock.part("UNet"):
            scheduler = schedulers.scheduler("ddim", FULL, self.backbone.noise)
            start = from_latent(z, noise_like(range(len(z)), self.shape).to(z), scheduler, steps)
            refined = sample(self.backbone.guided(condition, WEIGHT, self.interval), start, scheduler)
        with self.clock.part("decode"):
            images = self.decode(refined)
        with self.clock.part("PNG"):  # an untrained model's images may be flat and so marked NaN
            files = [png(pixels) for pixels in to_uint8(images.nan_to_num(0.5))]
        with self.clock.part("write"):
            for i, data in enumerate(files):
                write_bytes(folder / f"{i}.png", data)


def methods(folder: Path, device: str, side: int, interval: tuple[float, float]) -> list[tuple[Any, ...]]:
    """Everything that is measured: its name, (batch, steps, folder) -> files, and its clock."""
    worded = Prompts(FINDINGS)(labels := torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]).repeat(16, 1))
    images = torch.rand(32, 1, side, side, generator=torch.Generator().manual_seed(0))
    z = noise_like(range(32), (4, side // 8, side // 8))
    entries: list[tuple[Any, ...]] = []
    for dtype in dict.fromkeys((torch.float32, best_dtype(device))):
        stock = Stock(folder, device, dtype)
        short = str(dtype).removeprefix("torch.")
        entries.append((f"diffusers {short}", lambda b, s, f, x=stock: x(images[:b], worded[:b], s, f), stock.clock))
        # one image: one call, all threads
        one, many = (Ours(folder, device, dtype, side, rows, interval) for rows in (None, 8))
        one.clock = many.clock

        def ours(b: int, s: int, f: Path, one: Ours = one, many: Ours = many) -> None:
            (one if b == 1 else many)(z[:b], labels[:b], s, f)

        entries.append((f"medlt {short}", ours, many.clock))
    return entries


def cell(known: list[tuple[Any, ...]], batch: int, steps: int, rounds: int, folder: Path, device: str) -> list[str]:
    """Return one line per method: images a second, ratio to diffusers, peak memory, milliseconds an image by part."""
    spent: dict[str, list[tuple[float, Counter[str]]]] = {name: [] for name, _, _ in known}
    memory: dict[str, list[int]] = {name: [] for name, _, _ in known}
    for _, run, _ in known:  # warm up: text is cached, decoding layouts are tried
        run(batch, 1, folder)
    for _ in range(rounds):
        for name, run, timer in known:
            timer.spent = Counter()
            with peak_memory(device, memory[name]):
                began = clock(device)
                run(batch, steps, folder)
                spent[name].append((clock(device) - began, timer.spent))
    stock = [spent[name] for name in spent if name.startswith("diffusers")]
    lines: list[str] = []
    for name, rounds_of in spent.items():
        best, parts = min(rounds_of, key=lambda one: one[0])
        split = " | ".join(f"{1000 * parts[part] / batch:.0f}" for part in PARTS)
        ratios = " | ".join(_ratios(theirs, rounds_of) for theirs in (stock[0], stock[-1]))
        most = max(memory[name]) / 2**20
        lines.append(f"| {batch} | {steps} | {name} | {batch / best:.2f} | {ratios} | {most:.0f} | {split} |")
    return lines


def _ratios(theirs: list[tuple[float, Any]], ours: list[tuple[float, Any]]) -> str:
    """Return the median of the rounds' ratios, with the least and the most."""
    each = sorted(a / b for (a, _), (b, _) in zip(theirs, ours, strict=True))
    return f"{median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"


def main() -> None:
    """Every batch and number of steps."""
    read = argparse.ArgumentParser()
    read.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    read.add_argument("--size", choices=tuple(SIZES), default="small")
    read.add_argument("--rounds", type=int, default=3)
    read.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    read.add_argument("--steps", type=int, nargs="+", default=[5, 20, 50])
    read.add_argument("--interval", type=float, nargs=2, default=Fusion().guidance_interval)
    read.add_argument("--most", type=int, default=10**9, help="leave out cells of more images x steps")
    args = read.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.disable_progress_bar()
    side = (made := dict(SIZES[args.size])).pop("side")
    cells = [(batch, steps) for batch, steps in product(args.batches, args.steps) if batch * steps <= args.most]
    with tempfile.TemporaryDirectory() as place_:
        folder = untrained((work := Path(place_)) / "model", **made)
        known = methods(folder, args.device, side, (args.interval[0], args.interval[1]))
        head = [
            "batch",
            "steps",
            "method",
            "images/s",
            "x fp32",
            "x bf16",
            "peak MiB",
            *(f"{part} ms" for part in PARTS),
        ]
        low, high = args.interval
        text = (
            f"{args.size}, {side} px, guidance {WEIGHT} from {low} to {high}, {torch.get_num_threads()} threads, "
            f"{args.rounds} rounds."
        )
        lines = [text, "", "| " + " | ".join(head) + " |", "|---:|---:|---|" + "---:|" * (len(head) - 3)]
        for batch, steps in cells:
            lines += (new := cell(known, batch, steps, args.rounds, work, args.device))
            print(*new, sep="\n", flush=True)
    table("sampling", lines)


if __name__ == "__main__":
    main()
