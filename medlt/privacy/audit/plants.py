"""Planted copies: real training images after something that a copy may have been through, to see whether it is found.

A plant is a function (images float32 [B,1,H,W] in [0,1], generator) -> images. `COMMON` needs nothing but pixels; a
round trip of the run's own codec and its own denoiser started from a real image (SDEdit, arXiv 2108.01073) are made
from what is passed in. At great strength the latter is another image, and nothing need find it.
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
        "brightness and contrast": lambda images, draw: relit(images, draw, gamma=0.4, gain=0.2, offset=0.08),
        "shift up to 5 %": lambda images, draw: warped(images, draw, shift=0.05),
        "crop or pad up to 10 %": lambda images, draw: warped(images, draw, zoom=0.1),
        "rotation up to 5 degrees": lambda images, draw: warped(images, draw, angle=0.087),
        "noise of 0.05": lambda images, draw: noised(images, draw, 0.05),
        "blur of 1.5 % of the width": lambda images, draw: blurred(images, 0.015 * images.shape[-1]),
        "JPEG of quality 30": lambda images, draw: jpeg(images, 30),
    }
)


def round_trip(encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> Plant:
    """Through the codec: what the best copy by a latent model looks like."""

    def plant(images: Tensor, draw: Generator) -> Tensor:
        with torch.no_grad():
            return decode(encode(images)).clamp(0, 1).cpu()

    return plant


def img2img(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], denoiser: Denoiser,
    schedule: Callable[[], Any], keep: int,
) -> Plant:  # fmt: skip
    """Return the last `keep` steps of a fresh `schedule()` under the run's own denoiser, from the latents of real
    images.
    """

    def plant(images: Tensor, draw: Generator) -> Tensor:
        z, steps = encode(images), schedule()
        noise = torch.randn(z.shape, generator=draw).to(z)
        seeds = torch.randint(0, 2**31, (len(z),), generator=draw).tolist()
        with torch.no_grad():
            made: Tensor = decode(sample(denoiser, from_latent(z, noise, steps, keep), steps, seeds))
        return made.clamp(0, 1).cpu()

    return plant
