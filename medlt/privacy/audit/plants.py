"""Planted copies: changed training images that measure the recall of the search for near-copies.

A plant is a function (images float32 [B,1,H,W] in [0,1], generator) -> images. `COMMON` changes pixels; each row of a
plant of several images has parts of the rows before it. `round_trip`
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
from medlt.privacy.audit.views import blurred, cropped, jpeg, noised, relit, warped
from medlt.types import Denoiser

Plant: TypeAlias = Callable[[Tensor, Generator], Tensor]


def _pieces(images: Tensor, halves: int) -> Tensor:
    """Return images whose left halves are their own; the right halves, or all other quadrants, those of others."""
    middle, others = images.shape[-1] // 2, [images.roll(1, 0)] * 3
    if halves == 4:
        others = [images.roll(shift, 0) for shift in (1, 2, 3)]
    out = images.clone()
    out[..., :middle, middle:], out[..., middle:, middle:] = (
        others[0][..., :middle, middle:], others[1][..., middle:, middle:],
    )  # fmt: skip
    if halves == 4:
        out[..., middle:, :middle] = others[2][..., middle:, :middle]
    return out


COMMON: Mapping[str, Plant] = MappingProxyType(
    {
        "mirrored": lambda images, rng: images.flip(-1),
        "inverted": lambda images, rng: 1 - images,
        "brightness and contrast": lambda images, rng: relit(images, rng, gamma=0.7, gain=0.2, offset=0.08),
        "shift up to 15 %": lambda images, rng: warped(images, rng, shift=0.15),
        "scale up to 15 %": lambda images, rng: warped(images, rng, zoom=0.15),
        "rotation up to 10 degrees": lambda images, rng: warped(images, rng, angle=0.175),
        "crop to 90 %": lambda images, rng: cropped(images, rng, 0.9),
        "blend of two": lambda images, rng: (images + images.roll(1, 0)) / 2,
        "halves of two": lambda images, rng: _pieces(images, 2),
        "quadrants of four": lambda images, rng: _pieces(images, 4),
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
