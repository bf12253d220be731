"""Planted copies: changed training images that measure the recall of the search for near-copies.

A plant is a function (images float32 [B,1,H,W] in [0,1], generator) -> images. `COMMON` changes pixels. `round_trip`
uses the codec of the run, and `img2img` its denoiser, started from a real image (SDEdit, arXiv 2108.01073). At a high
strength the result is a different image, which the search need not detect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

from medlt.diffusion.sampler import from_latent, sample
from medlt.privacy.audit.views import blurred, jpeg, noised, relit, warped
from medlt.types import Denoiser

Plant: TypeAlias = Callable[[Tensor, Generator], Tensor]

COMMON: Mapping[str, Plant] = MappingProxyType(
    {
        "brightness and contrast": lambda images, rng: relit(images, rng, gamma=0.4, gain=0.2, offset=0.08),
        "shift up to 5 %": lambda images, rng: warped(images, rng, shift=0.05),
        "crop or pad up to 10 %": lambda images, rng: warped(images, rng, zoom=0.1),
        "rotation up to 5 degrees": lambda images, rng: warped(images, rng, angle=0.087),
        "noise of 0.05": lambda images, rng: noised(images, rng, 0.05),
        "blur of 1.5 % of the width": lambda images, rng: blurred(images, 0.015 * images.shape[-1]),
        "JPEG of quality 30": lambda images, rng: jpeg(images, 30),
    }
)


def round_trip(encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> Plant:
    """Return a plant that encodes and decodes, which is the best copy that a latent model can make."""

    def plant(images: Tensor, rng: Generator) -> Tensor:
        with torch.no_grad():
            return decode(encode(images)).clamp(0, 1).cpu()

    return plant


def img2img(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], denoiser: Denoiser,
    schedule: Callable[[], Any], last_steps: int,
) -> Plant:  # fmt: skip
    """Return a plant that runs the last `last_steps` steps of a new `schedule()` with `denoiser` from real latents."""

    def plant(images: Tensor, rng: Generator) -> Tensor:
        z, steps = encode(images), schedule()
        noise = torch.randn(z.shape, generator=rng).to(z)
        seeds = torch.randint(0, 2**31, (len(z),), generator=rng).tolist()
        with torch.no_grad():
            made: Tensor = decode(sample(denoiser, from_latent(z, noise, steps, last_steps), steps, seeds))
        return made.clamp(0, 1).cpu()

    return plant
