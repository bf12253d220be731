"""A generator of synthetic radiographs that stands alone: it needs torch, diffusers, numpy and pillow, not medlt.

`medlt export` copies this file into what it hands out. The network is a diffusers UNet2DModel in the latent space of a
diffusers AutoencoderKL, or of pixels, where there is no vae. Its class embedding is made from a vector of labels:
1 present, 0 absent, NaN unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ConfigMixin,
    DDIMScheduler,
    DiffusionPipeline,
    ModelMixin,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

EVERYWHERE = (0.0, 1.0)
NOTICE = "Synthetic radiograph. It shows no patient; do not use it for diagnosis."
AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "view": (("pa",), ("ap",), ("frontal",), ("lateral", "lat", "ll", "rl")),
    "sex": (("female", "f", "woman"), ("male", "m", "man")),
}
"""The values of an attribute, each with its spellings."""
WIDTHS = {"view": 5, "sex": 3, "age": 2}


def columns(name: str, value: object) -> list[float]:
    """Return the columns of an attribute: unknown, then one a value; of an age in years: unknown, (age - 50) / 25."""
    if name == "age":
        age = float(value) if isinstance(value, int | float) and 0 <= value <= 120 else None
        return [1.0, 0.0] if age is None else [0.0, (age - 50) / 25]
    known = [float(str(value).strip().lower() in words) for words in WORDS[name]]
    return [float(not any(known)), *known]


class LabelEmbedding(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Label vectors [B,K+A] to class embeddings [B,width], with the mean and sd of the latents [C] as buffers.

    latent_size: height and width of a latent; run: the id of the run that trained it, which images carry; attributes:
    those of view, sex and age that it was trained with, in A columns. Vectors [B,K] have unknown attributes.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, findings: list[str], width: int, channels: int, latent_size: tuple[int, int], run: str = "",
        attributes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        inputs = 2 * len(findings) + sum(WIDTHS[name] for name in attributes)
        self.embed = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("sd", torch.ones(channels))

    def forward(self, labels: Tensor) -> Tensor:
        """Return embeddings [B,width]."""
        count = len(self.config["findings"])
        own, described = labels[:, :count], labels[:, count:]
        if not described.shape[1]:
            described = self.described({}).to(labels).expand(len(labels), -1)
        known = (~own.isnan()).float()
        embedded: Tensor = self.embed(torch.cat([own.nan_to_num(0.0), known, described], 1))
        return embedded

    def described(self, labels: Mapping[str, Any]) -> Tensor:
        """Return the columns [A] of view, sex and age."""
        return torch.tensor([one for name in self.config["attributes"] for one in columns(name, labels.get(name))])

    def vector(self, labels: Mapping[str, Any]) -> Tensor:
        """Return the vector [K+A] of named findings and attributes; other findings are absent, attributes unknown.

        Raises ValueError for a strange name.
        """
        findings = list(self.config["findings"])
        if strange := [name for name in labels if name not in (*findings, *self.config["attributes"])]:
            known = ", ".join((*findings, *self.config["attributes"]))
            raise ValueError(f"{strange[0]!r} is not a finding of this generator; use {known}")
        values = torch.tensor([float(labels.get(name, 0.0)) for name in findings])
        return torch.cat([values, self.described(labels)])


@torch.no_grad()
def sample(
    unet: Any, embedding: LabelEmbedding, scheduler: Any, labels: Tensor, noise: Tensor, guidance_scale: float,
    guidance_interval: Sequence[float] = EVERYWHERE,
) -> Tensor:  # fmt: skip
    """Return latents of the codec [B,C,h,w] from unit noise, guided without a classifier (arXiv 2207.12598).

    Guidance acts at the timesteps of `guidance_interval`, as shares of all timesteps (arXiv 2404.07724); elsewhere the
    unet runs under the labels alone. The timesteps of `scheduler` are set already. The last step returns the clean
    estimate, so no noise is left.
    """
    low, high = (share * scheduler.config.num_train_timesteps for share in guidance_interval)
    with_labels = embedding(labels)
    both = torch.cat([embedding.null.expand(len(labels), -1), with_labels])
    x = clean = noise
    for t in scheduler.timesteps:
        if low <= t <= high:
            null, conditional = unet(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
            estimate = torch.lerp(null, conditional, guidance_scale)
        else:
            estimate = unet(x, t, class_labels=with_labels).sample
        step = scheduler.step(estimate, t, x)
        x, clean = step.prev_sample, step.pred_original_sample
    mean, sd = (value[:, None, None] for value in (embedding.mean, embedding.sd))
    latents: Tensor = clean * sd + mean
    return latents


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return images [B,1,H,W] in [0,1] from scaled latents [B,C,h,w]; without `vae` they are pixels in [-1,1]."""
    if vae is None:
        return ((pixel_shuffle(latents, math.isqrt(latents.shape[1])) + 1) / 2).clamp(0, 1)
    shift = _setting(vae, "latents_mean", _setting(vae, "shift_factor", 0.0))
    scale = _setting(vae, "scaling_factor", 1.0) / _setting(vae, "latents_std", 1.0)
    images: Tensor = vae.decode(latents / scale.to(latents) + shift.to(latents)).sample
    return ((images.float().mean(1, keepdim=True) + 1) / 2).clamp(0, 1)


def _setting(vae: Any, name: str, default: float | Tensor) -> Tensor:
    """Return a scalar or per-channel setting as [1,C or 1,1,1]."""
    value = getattr(vae.config, name, None)
    return torch.as_tensor(default if value is None else value, dtype=torch.float32).reshape(1, -1, 1, 1)


def unit_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return noise [B,C,h,w]; each row depends on its own seed alone."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


class LabelPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A diffusers pipeline over the parts: unet, vae, scheduler and label_embedding."""

    _optional_components: ClassVar[list[str]] = ["vae"]

    def __init__(self, unet: Any, vae: Any, scheduler: Any, label_embedding: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler, label_embedding=label_embedding)

    @classmethod
    def from_folder(cls, folder: str | Path) -> LabelPipeline:
        """Return the pipeline of an exported folder. Nothing is downloaded."""
        place = Path(folder)
        parts: dict[str, Any] = {"unet": UNet2DModel, "label_embedding": LabelEmbedding}
        if (config := place / "vae" / "config.json").is_file():
            parts["vae"] = AUTOENCODERS[json.loads(config.read_text())["_class_name"]]
        loaded = {
            name: part.from_pretrained(place / name, local_files_only=True, use_safetensors=True)
            for name, part in parts.items()
        }
        scheduler = DDIMScheduler.from_pretrained(place / "scheduler", local_files_only=True)
        return cls(scheduler=scheduler, **{"vae": None, **loaded})

    @torch.no_grad()
    def __call__(
        self, labels: Mapping[str, Any], seeds: Sequence[int] = (0,), num_inference_steps: int = 50,
        guidance_scale: float = 2.0, guidance_interval: Sequence[float] = EVERYWHERE,
    ) -> list[Image.Image]:  # fmt: skip
        """Return one image a seed that shows the named findings, such as {"Hernia": 1, "sex": "F", "age": 60}."""
        embedding, device = self.label_embedding, self.label_embedding.null.device
        vectors = embedding.vector(labels).expand(len(seeds), -1).to(device)
        self.scheduler.set_timesteps(num_inference_steps)
        noise = unit_noise(seeds, (embedding.config["channels"], *embedding.config["latent_size"])).to(device)
        latents = sample(self.unet, embedding, self.scheduler, vectors, noise, guidance_scale, guidance_interval)
        return pictures(decode(self.vae, latents))


class Generator(nn.Module):
    """The same parts as one network, from their configs, as a MONAI bundle requires it."""

    def __init__(
        self, unet: Mapping[str, Any], vae: Mapping[str, Any] | None, scheduler: Mapping[str, Any],
        label_embedding: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.unet = UNet2DModel.from_config(dict(unet))
        self.vae = None if vae is None else AUTOENCODERS[str(vae["_class_name"])].from_config(dict(vae))
        self.label_embedding: Any = LabelEmbedding(**label_embedding)
        self.scheduler = DDIMScheduler.from_config(dict(scheduler))

    def forward(
        self, labels: Tensor, noise: Tensor, num_inference_steps: int, guidance_scale: float,
        guidance_interval: Sequence[float] = EVERYWHERE,
    ) -> Tensor:  # fmt: skip
        """Return images [B,1,H,W] in [0,1] of label vectors [B,K+A] from noise [B,C,h,w]."""
        self.scheduler.set_timesteps(num_inference_steps)
        chosen = (guidance_scale, guidance_interval)
        latents = sample(self.unet, self.label_embedding, self.scheduler, labels, noise, *chosen)
        return decode(self.vae, latents)

    def generate(
        self, labels: Mapping[str, Any], seeds: Sequence[int], num_inference_steps: int, guidance_scale: float,
        guidance_interval: Sequence[float] = EVERYWHERE,
    ) -> Tensor:  # fmt: skip
        """Return one image a seed [B,1,H,W] that shows the named findings."""
        embedding, device = self.label_embedding, self.label_embedding.null.device
        vectors = embedding.vector(labels).expand(len(seeds), -1).to(device)
        noise = unit_noise(seeds, (embedding.config["channels"], *embedding.config["latent_size"])).to(device)
        images: Tensor = self.eval()(vectors, noise, num_inference_steps, guidance_scale, guidance_interval)
        return images


def pictures(images: Tensor) -> list[Image.Image]:
    """Return 8-bit pictures of images [B,1,H,W] in [0,1]."""
    return [Image.fromarray((image[0].cpu() * 255 + 0.5).to(torch.uint8).numpy()) for image in images]


def save(images: Tensor, folder: str, seeds: Sequence[int], run: str = "") -> list[str]:
    """Write one PNG a seed, and return the files. Their text chunks: synthetic, the run, the uid, the seed."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = [str(Path(folder) / f"synthetic-{seed}.png") for seed in seeds]
    for seed, file, picture in zip(seeds, files, pictures(images), strict=True):
        text = PngInfo()
        values = {"Description": NOTICE, "Synthetic": "true", "Run": run, "UID": f"synthetic-{seed}", "Seed": str(seed)}
        for name in filter(values.get, values):
            text.add_text(name, values[name])
        picture.save(file, pnginfo=text)
    return files
