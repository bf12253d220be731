"""Light augmentation of a batch: small rotation, scale, shift; contrast and brightness. Never a left-right flip.

A mirrored chest is situs inversus; the heart's side is a finding, not a nuisance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 10.0,
    scale: float = 0.1,
    shift: float = 0.05,
    contrast: float = 0.2,
    brightness: float = 0.1,
) -> Tensor:
    """images float [B,1,S,S] in [0,1] -> the same, each moved by draws of its own, uniform in +- the named amounts.

    shift is a share of the side; borders are repeated. All draws come from `generator`.
    """
    draws = torch.rand(6, len(images), generator=generator) * 2 - 1
    angle, zoom = draws[0] * math.radians(degrees), 1 + draws[1] * scale
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, -sin, draws[2] * 2 * shift, sin, cos, draws[3] * 2 * shift], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = (1 + draws[4] * contrast).view(-1, 1, 1, 1), (draws[5] * brightness).view(-1, 1, 1, 1)
    return ((moved - 0.5) * gain + 0.5 + offset).clamp(0, 1)
