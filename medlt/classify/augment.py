"""Augment a batch by name: "none", "light" or "monai". No augmentation flips left and right.

A mirrored chest is situs inversus: the side of the heart carries information.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.types import InputError

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""(images float [B,1,S,S] in [0,1], a CPU generator for all draws) -> augmented images, same shape."""


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
    """Rotate, scale and shift each image a little, and change its contrast and brightness.

    images: float [B,1,S,S] in [0,1] on any device. Each image has draws of its own, uniform in +- the given amounts.
    shift is a share of the side. Border pixels are repeated. All draws come from `generator`.
    """
    draws = (torch.rand(6, len(images), generator=generator) * 2 - 1).to(images.device)
    angle, zoom = draws[0] * math.radians(degrees), 1 + draws[1] * scale
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos, -sin, draws[2] * 2 * shift, sin, cos, draws[3] * 2 * shift], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = (1 + draws[4] * contrast).view(-1, 1, 1, 1), (draws[5] * brightness).view(-1, 1, 1, 1)
    return ((moved - 0.5) * gain + 0.5 + offset).clamp(0, 1)


def monai_transforms(side: int) -> Any:
    """Return MONAI's random transforms for chest radiographs [1,side,side] in [0,1].

    They are affine, gamma, blur, noise and coarse dropout, without a flip. The composed transform holds its random
    state: do not share it between threads.
    """
    from monai import transforms as t

    reach, hole = 0.05 * side, max(1, side // 16)
    holes = {"holes": 1, "max_holes": 4, "spatial_size": hole, "max_spatial_size": 2 * hole, "fill_value": 0.0}
    affine = t.RandAffine(
        prob=0.8,
        rotate_range=math.radians(10),
        translate_range=(reach, reach),
        scale_range=(0.1, 0.1),
        padding_mode="border",
        mode="bilinear",
    )
    return t.Compose(
        [
            affine,
            t.RandAdjustContrast(prob=0.5, gamma=(0.7, 1.5)),
            t.RandGaussianSmooth(prob=0.2, sigma_x=(0.25, 1.0), sigma_y=(0.25, 1.0)),
            t.RandGaussianNoise(prob=0.3, std=0.03),
            t.RandCoarseDropout(prob=0.2, **holes),
        ]
    )


def with_monai(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply MONAI's transforms image by image, with random state from the generator.

    It works on clones, because RandCoarseDropout writes into its input.
    """
    moved = monai_transforms(images.shape[-1])
    moved.set_random_state(seed=int(torch.randint(2**32 - 1, (), generator=generator)))
    return torch.stack([moved(image.clone()).as_tensor() for image in images]).clamp(0, 1)


AUGMENTS: dict[str, Augment] = {"light": augment, "none": lambda images, generator: images, "monai": with_monai}


def augmentation(name: str) -> Augment:
    """Return an augmentation by name. Raises InputError for an unknown name."""
    if name not in AUGMENTS:
        raise InputError(f"no augmentation named {name!r}; choose one of {', '.join(AUGMENTS)}")
    return AUGMENTS[name]
