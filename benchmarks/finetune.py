"""A step of fine-tuning Stable Diffusion: medlt beside the example scripts of diffusers, with the same model.

    python benchmarks/finetune.py [--width 64] [--pixels 256] [--batch 4] [--steps 12] [--precision fp32] [--device cpu]

The reference is our own loop after diffusers' examples/text_to_image/train_text_to_image_lora.py and
train_text_to_image.py, with their defaults and --snr_gamma 5 (and --use_ema for full). A step: tokenise, VAE-encode,
CLIP-encode, add noise, UNet, min-SNR loss, backward, clip, AdamW, scheduler. medlt reads latents from its cache,
encodes each prompt once, and averages weights in both cases. Both train the same untrained network in the format of
Stable Diffusion 1.5, with UNet, VAE and text encoder scaled alike (--width 320 is the real one), on the same images
and prompts.

Seconds are those of the fastest step; the two loops take turns step by step. On a CPU they are CPU seconds of the
process, which a shared machine disturbs least (OMP_NUM_THREADS=1 makes them those of a quiet machine). Memory is the
peak of a separate process, above its memory before the model was loaded; on a GPU, the peak that torch allocated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from common import table
from torch import Tensor
from torch.nn import functional

from medlt.diffusion.adapt import Finetuning, FullFinetuning, LoraFinetuning
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.rng import noise_like
from medlt.training.runtime import Runtime
from medlt.training.settings import Training

IMAGES, RANK = 64, 4
FINDINGS = ("Cardiomegaly", "Effusion", "Edema", "Mass")


def labels() -> Tensor:
    """Four findings of each image, [IMAGES,4]."""
    return torch.stack([torch.arange(IMAGES) // 2**k % 2 for k in range(4)], 1).float()


def model(folder: Path, width: int) -> Path:
    """A model in the format of 1.5, each part as much smaller as the UNet; --width 320 has the published sizes."""
    vae = [max(32, 32 * round(part * width / 320 / 32)) for part in (128, 256, 512, 512)]
    text = max(64, 64 * round(768 * width / 320 / 64))
    widths = (width, 2 * width, 4 * width, 4 * width)
    return untrained(folder, version="1.5", widths=widths, text_width=text, text_layers=12, vae=vae)


class Reference:
    """The example scripts' loop, one step a call; `encoding` are the seconds of VAE and text encoder in each."""

    def __init__(self, folder: Path, full: bool, args: argparse.Namespace) -> None:
        from accelerate import Accelerator
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel, cast_training_params
        from transformers import CLIPTextModel, CLIPTokenizer

        self.accelerator = Accelerator(
            mixed_precision="no" if args.precision == "fp32" else args.precision, cpu=args.device == "cpu"
        )
        half = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.precision]
        where: dict[str, Any] = {"device": self.accelerator.device, "dtype": half}
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False).to(**where)
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False).to(**where)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        self.schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        if full:
            unet.train()
        else:
            from peft import LoraConfig

            unet.requires_grad_(False).to(**where)
            unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian",
                                        target_modules=["to_k", "to_q", "to_v", "to_out.0"]))  # fmt: skip
            if half is torch.float16:
                cast_training_params(unet)
        self.weights = [weight for weight in unet.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(self.weights, lr=1e-4, weight_decay=1e-2)
        rate = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=1000)
        self.unet, self.optimizer, self.rate = self.accelerator.prepare(unet, optimizer, rate)
        self.ema = EMAModel(self.weights) if full else None
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.half, self.encoding = half, list[float]()
        self.loader = iter(self._batches(args))

    def _batches(self, args: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
        """Shuffled pixels [B,3,H,W] in [-1,1] and token ids [B,77], for ever."""
        prompts = Prompts(FINDINGS)(labels())
        pixels = noise_like(range(IMAGES), (1, args.pixels, args.pixels)).clamp(-1, 1).expand(-1, 3, -1, -1)

        def collate(rows: Sequence[int]) -> dict[str, Tensor]:
            ids = self.tokenizer([prompts[i] for i in rows], max_length=77, padding="max_length", truncation=True,
                                 return_tensors="pt").input_ids  # fmt: skip
            return {"pixels": torch.stack([pixels[i] for i in rows]).contiguous(), "ids": ids}

        while True:
            yield from torch.utils.data.DataLoader(
                range(IMAGES),  # type: ignore[arg-type]
                batch_size=args.batch,
                shuffle=True,
                collate_fn=collate,
            )

    def encoded(self) -> tuple[Tensor, Tensor]:
        """Latents and prompt embeddings of the next batch."""
        batch, device = next(self.loader), self.accelerator.device
        began = now(device)
        z = self.vae.encode(batch["pixels"].to(device, self.half)).latent_dist.sample() * self.vae.config.scaling_factor
        condition = self.text(batch["ids"].to(device), return_dict=False)[0]
        self.encoding.append(now(device) - began)
        return z, condition

    def __call__(self) -> None:
        from diffusers.training_utils import compute_snr

        with self.accelerator.accumulate(self.unet):
            z, condition = self.encoded()
            noise = torch.randn_like(z)
            t = torch.randint(0, self.schedule.config.num_train_timesteps, (len(z),), device=z.device).long()
            out = self.unet(self.schedule.add_noise(z, noise, t), t, condition, return_dict=False)[0]
            snr = compute_snr(self.schedule, t)
            weight = torch.stack([snr, 5.0 * torch.ones_like(t)], dim=1).min(dim=1)[0] / snr
            each = functional.mse_loss(out.float(), noise.float(), reduction="none").mean((1, 2, 3))
            loss = (each * weight).mean()
            self.accelerator.gather(loss.repeat(len(z))).mean().item()
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.weights)


def now(device: torch.device | str) -> float:
    """Seconds: of this process's CPU time, or on a GPU of the wall clock after all queued work."""
    if torch.device(device).type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def medlt(folder: Path, how: Finetuning, args: argparse.Namespace, after: Callable[[int], None]) -> None:
    """train_backbone on cached latents; after(step) is called after each step."""
    backbone = load_stable_diffusion(folder).backbone(Prompts(FINDINGS))
    z = noise_like(range(IMAGES), (4, args.pixels // 8, args.pixels // 8))
    data = LabelledLatents(
        lambda uids: z[[int(uid) for uid in uids]], [str(i) for i in range(IMAGES)], labels().numpy(), "noise"
    )
    training = Training(steps=args.steps + 1, batch_size=args.batch, checkpoint_every=10**6,
                        gradient_checkpointing=args.checkpointing)  # fmt: skip
    runtime = Runtime(args.device, args.precision, None, 0, lambda stage, done, total: after(done))
    with tempfile.TemporaryDirectory() as out:
        train_backbone(backbone, data, folder=Path(out), training=training, finetuning=how, runtime=runtime)


def turns(folder: Path, full: bool, args: argparse.Namespace) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each step of medlt, of the reference, and of the reference's encoding; the first step is left out."""
    ours: list[float] = []
    theirs: list[float] = []
    reference: list[Reference] = []
    mark = now(args.device)

    def after(done: int) -> None:
        nonlocal mark
        ours.append(now(args.device) - mark)
        if not reference:
            reference.append(Reference(folder, full, args))
        began = now(args.device)
        reference[0]()
        theirs.append(now(args.device) - began)
        mark = now(args.device)

    medlt(folder, FullFinetuning() if full else LoraFinetuning(rank=RANK), args, after)
    return ours[1:-1], theirs[1:], reference[0].encoding[1:]


def peak(folder: Path, loop: str, full: bool, args: argparse.Namespace) -> float:
    """Most MB that one loop held until its third step was done, in this process; no checkpoint is written by then."""
    import diffusers.models  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.clip.modeling_clip  # noqa: F401

    kept: list[int] = []
    with resident() as seen:
        if loop == "medlt":
            args.steps = 3
            medlt(
                folder,
                FullFinetuning() if full else LoraFinetuning(rank=RANK),
                args,
                lambda done: kept.append(max(seen)),
            )
        else:
            reference = Reference(folder, full, args)
            for _ in range(3):
                reference()
                kept.append(max(seen))
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return (kept[2] - seen[0]) / 2**20


@contextmanager
def resident() -> Iterator[list[int]]:
    """Yield the memory of this process in bytes, sampled every 5 ms in the block; the first sample is before it."""
    process, over = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def sample_memory() -> None:
        while not over.wait(0.005):
            seen.append(process.memory_info().rss)

    watch = threading.Thread(target=sample_memory)
    watch.start()
    try:
        yield seen
    finally:
        over.set()
        watch.join()


def peak_of_process(folder: Path, loop: str, kind: str, checkpointing: bool = False) -> float:
    """`peak` in a process of its own."""
    more = ["--checkpointing"] if checkpointing else []
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", str(folder), loop, kind, *more]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(json.loads(out.splitlines()[-1]))


@contextmanager
def model_folder(width: int) -> Iterator[Path]:
    """A folder with the model, gone afterwards."""
    with tempfile.TemporaryDirectory() as place:
        yield model(Path(place, "model"), width)


def main() -> None:
    """Both loops, LoRA and full."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--name", default="finetune")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        folder, loop, kind = args.peak
        print(json.dumps(peak(Path(folder), loop, kind == "full", args)))
        return
    lines = [
        f"UNet {args.width} channels wide, {args.pixels} px, batch {args.batch}, {args.precision}, {args.device}, "
        f"{torch.get_num_threads()} threads.", "",
        "| training | loop | seconds a step | of which VAE and text | times as fast | peak MB | times the memory |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    with model_folder(args.width) as folder:
        for kind in ("lora", "full"):
            ours, theirs, encoding = (min(spent) for spent in turns(folder, kind == "full", args))
            memory = [peak_of_process(folder, loop, kind) for loop in ("reference", "medlt")]
            spare = peak_of_process(folder, "medlt", kind, checkpointing=True)
            lines += [
                f"| {kind} | example script's steps | {theirs:.3f} | {encoding:.3f} | 1 | {memory[0]:.0f} | 1 |",
                f"| | medlt | {ours:.3f} | 0 | {theirs / ours:.2f} | {memory[1]:.0f} | {memory[1] / memory[0]:.2f} |",
                f"| | medlt, gradient checkpointing | | | | {spare:.0f} | {spare / memory[0]:.2f} |",
            ]
    table(args.name, lines)


if __name__ == "__main__":
    main()
