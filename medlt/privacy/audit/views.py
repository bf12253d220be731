"""Changed views of an image, which are still copies of it.

Images are float32 [B,1,H,W] in [0,1]. Each row draws its own amounts from the generator. The embedding is trained on
mixtures of these changes; the planted copies of the audit have one of them at a fixed strength.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional


def uniform(rows: int, reach: float, rng: Generator) -> Tensor:
    """Return uniform numbers in [-reach, reach], [rows,1,1,1]."""
    return (torch.rand(rows, 1, 1, 1, generator=rng) * 2 - 1) * reach


def warped(images: Tensor, rng: Generator, angle: float = 0.0, zoom: float = 0.0, shift: float = 0.0) -> Tensor:
    """Rotate by up to `angle` radians, scale by up to `zoom`, move by up to `shift` of the width; extend the edges."""
    turn = uniform(len(images), angle, rng).flatten()
    by = 1 + uniform(len(images), zoom, rng).flatten()
    across, down = 2 * uniform(len(images), shift, rng).flatten(), 2 * uniform(len(images), shift, rng).flatten()
    rows = [by * turn.cos(), -by * turn.sin(), across, by * turn.sin(), by * turn.cos(), down]
    grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


def cropped(images: Tensor, rng: Generator, width: float) -> Tensor:
    """Crop to `width` of the width and height, at a random place, and resize to the whole."""
    reach = 1 - width
    across, down = uniform(len(images), reach, rng).flatten(), uniform(len(images), reach, rng).flatten()
    zero, scale = torch.zeros_like(across), torch.full_like(across, width)
    grid = torch.stack([scale, zero, across, zero, scale, down], 1).view(-1, 2, 3)
    grid = functional.affine_grid(grid, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


def relit(images: Tensor, rng: Generator, gamma: float = 0.0, gain: float = 0.0, offset: float = 0.0) -> Tensor:
    """Change brightness and contrast: gain * x^exp(gamma) + offset, clipped to [0,1]."""
    curve = images.clamp(1e-3, 1) ** uniform(len(images), gamma, rng).exp().to(images)
    gains = 1 + uniform(len(images), gain, rng).to(images)
    return (gains * curve + uniform(len(images), offset, rng).to(images)).clamp(0, 1)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels; extend the edges."""
    reach = max(1, round(3 * sigma))
    kernel = torch.softmax(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2), 0).tolist()
    height, width = images.shape[-2:]
    padded = functional.pad(images, (reach,) * 4, mode="replicate")  # sums of slices are ten times as fast as conv2d
    across = sum(weight * padded[..., i : i + width] for i, weight in enumerate(kernel))
    out = sum(weight * across[..., i : i + height, :] for i, weight in enumerate(kernel))
    assert isinstance(out, Tensor)
    return out


def noised(images: Tensor, rng: Generator, sd: float) -> Tensor:
    """Add normal noise of standard deviation `sd`, and clip to [0,1]."""
    return (images + sd * torch.randn(images.shape, generator=rng).to(images)).clamp(0, 1)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Write as 8-bit JPEG and read back."""
    from PIL import Image

    out = []
    for pixels in (images[:, 0].clamp(0, 1) * 255).round().byte().cpu().numpy():
        held = io.BytesIO()
        Image.fromarray(pixels).save(held, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(held)))
    return (torch.from_numpy(np.stack(out))[:, None].float() / 255).to(images.device)


def training_view(images: Tensor, rng: Generator) -> Tensor:
    """Return views for training: moved, relit, partly blurred and noised, each by a random amount."""
    seen = relit(warped(images, rng, 0.15, 0.15, 0.06), rng, gamma=0.4)
    softened = torch.rand(len(seen), 1, 1, 1, generator=rng).to(seen)
    seen = torch.lerp(seen, blurred(seen, 0.8), softened)
    grain = torch.randn(seen.shape, generator=rng) * torch.rand(len(seen), 1, 1, 1, generator=rng) * 0.06
    return seen + grain.to(seen)
