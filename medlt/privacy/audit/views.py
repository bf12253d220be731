"""Other views of an image: what a copy may have been through and still be a copy.

Images are float32 [B,1,H,W] in [0,1]; each row draws its own amounts from a generator. The embedding is trained on
milder and stronger mixtures of these; the planted copies of the audit are single ones at a stated strength.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional


def uniform(rows: int, reach: float, draw: Generator) -> Tensor:
    """Return [rows,1,1,1], uniform in [-reach, reach]."""
    return (torch.rand(rows, 1, 1, 1, generator=draw) * 2 - 1) * reach


def warped(images: Tensor, draw: Generator, angle: float = 0.0, zoom: float = 0.0, shift: float = 0.0) -> Tensor:
    """Rotated by up to `angle` radians, scaled by up to `zoom`, moved by up to `shift` of the width; edges extended."""
    turn = uniform(len(images), angle, draw).flatten()
    by = 1 + uniform(len(images), zoom, draw).flatten()
    across, down = 2 * uniform(len(images), shift, draw).flatten(), 2 * uniform(len(images), shift, draw).flatten()
    rows = [by * turn.cos(), -by * turn.sin(), across, by * turn.sin(), by * turn.cos(), down]
    grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


def relit(images: Tensor, draw: Generator, gamma: float = 0.0, gain: float = 0.0, offset: float = 0.0) -> Tensor:
    """Other brightness and contrast: gain * x^exp(gamma) + offset, cut to [0,1]."""
    curve = images.clamp(1e-3, 1) ** uniform(len(images), gamma, draw).exp().to(images)
    gains = 1 + uniform(len(images), gain, draw).to(images)
    return (gains * curve + uniform(len(images), offset, draw).to(images)).clamp(0, 1)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return Gaussian blur of `sigma` pixels, edges extended."""
    reach = max(1, round(3 * sigma))
    kernel = torch.softmax(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2), 0).tolist()
    height, width = images.shape[-2:]
    padded = functional.pad(images, (reach,) * 4, mode="replicate")  # sums of slices: ten times as fast as conv2d here
    across = sum(weight * padded[..., i : i + width] for i, weight in enumerate(kernel))
    out = sum(weight * across[..., i : i + height, :] for i, weight in enumerate(kernel))
    assert isinstance(out, Tensor)
    return out


def noised(images: Tensor, draw: Generator, sd: float) -> Tensor:
    """Normal noise of standard deviation `sd`, cut to [0,1]."""
    return (images + sd * torch.randn(images.shape, generator=draw).to(images)).clamp(0, 1)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Written as JPEG and read back, 8 bit."""
    from PIL import Image

    out = []
    for pixels in (images[:, 0].clamp(0, 1) * 255).round().byte().cpu().numpy():
        held = io.BytesIO()
        Image.fromarray(pixels).save(held, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(held)))
    return (torch.from_numpy(np.stack(out))[:, None].float() / 255).to(images.device)


def training_view(images: Tensor, draw: Generator) -> Tensor:
    """Return a view to learn from: moved, relit, partly blurred, noised, each by a random amount."""
    seen = relit(warped(images, draw, 0.15, 0.15, 0.06), draw, gamma=0.4)
    softened = torch.rand(len(seen), 1, 1, 1, generator=draw).to(seen)
    seen = torch.lerp(seen, blurred(seen, 0.8), softened)
    grain = torch.randn(seen.shape, generator=draw) * torch.rand(len(seen), 1, 1, 1, generator=draw) * 0.06
    return seen + grain.to(seen)
