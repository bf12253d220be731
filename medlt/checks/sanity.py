"""Is it an image at all, and a new one? Non-finite, flat, saturated, or a copy of a parent or of another one.

Every check is a frozen dataclass of one limit (`medlt.checks.limit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from medlt.checks.apart import pixels_of
from medlt.checks.limit import held
from medlt.types import Batch, Check, Finding

Images: TypeAlias = Callable[[Sequence[str]], Tensor]
"""uids -> real images [n,1,H,W], uint8 or float in [0,1], of the size of the synthetic ones."""


@dataclass(frozen=True)
class Finite:
    """Value: how many pixels are NaN, infinite or outside [0,1]. None may be."""

    limit: float = 0.0
    name: ClassVar[str] = "finite"
    passes_above: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> list[Finding]:
        """One Finding an image."""
        good = batch.images.isfinite() & (batch.images >= 0) & (batch.images <= 1)
        bad = (~good).flatten(1).sum(1)
        return held(self, batch, bad, "pixels that are not finite or not in [0,1]")


@dataclass(frozen=True)
class Flat:
    """Value: standard deviation of the pixels. A black, white or grey image has next to none."""

    limit: float = 0.02
    name: ClassVar[str] = "flat"
    passes_above: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> list[Finding]:
        """One Finding an image."""
        pixels = batch.images.flatten(1)
        spread = (pixels - pixels.mean(1, keepdim=True)).square().mean(1).sqrt()
        return held(self, batch, spread, "the image is flat (black, white or grey)")


@dataclass(frozen=True)
class Saturated:
    """Value: share of pixels at exactly 0 or 1 after rounding to 8 bit. Most of a radiograph lies between."""

    limit: float = 0.6
    name: ClassVar[str] = "saturated"
    passes_above: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> list[Finding]:
        """One Finding an image."""
        pixels = batch.images.nan_to_num(0, 0, 0).flatten(1)
        share = ((pixels <= 0.5 / 255) | (pixels >= 254.5 / 255)).double().mean(1)
        return held(self, batch, share, "most of the image is clipped to black or white")


@dataclass(frozen=True)
class Duplicate:
    """Value: highest correlation with a real parent, -1 without one.

    Other synthetic images are not looked at here: the answer would hang on how the rows were cut into batches. The
    whole set is searched by `copies` when it is there.
    """

    parents: Images
    limit: float = 0.995
    name: ClassVar[str] = "duplicate"
    passes_above: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> list[Finding]:
        """One Finding an image; batch.rows needs a column `parents`, a list of uids each."""
        own = standardised(batch.images)
        parents = list(pixels_of(batch.rows))
        known = sorted({uid for row in parents for uid in row})
        values = torch.full((len(own),), -1.0, dtype=own.dtype)
        if known:
            mine = torch.tensor([[uid in row for uid in known] for row in parents])
            values = torch.where(mine, own @ standardised(self.parents(known)).T, -1.0).max(1).values
        return held(self, batch, values, "a copy of a real parent")


def standardised(images: Tensor) -> Tensor:
    """[N,1,H,W] -> [N,H*W], mean 0 and norm 1, so that a product is a correlation. Flat images become 0."""
    scaled = images.double() / 255 if images.dtype == torch.uint8 else images.nan_to_num(0, 0, 0).double()
    pixels = scaled.flatten(1)
    centred = pixels - pixels.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-9, centred / norm.clamp(min=1e-9), 0)


def _before(own: Tensor) -> Tensor:
    """[N,N] correlations with earlier rows; -1 for the others, and everywhere in the first row."""
    earlier = torch.ones(len(own), len(own), dtype=torch.bool).tril(-1)
    return torch.where(earlier, own @ own.T, -1.0)


def copies(uids: Sequence[str], images: Images, limit: float = 0.995, chunk: int = 256) -> list[Finding]:
    """Search a whole set for pairs: one Finding an image, the later of a pair failing. Holds two chunks at a time."""
    values = torch.full((len(uids),), -1.0, dtype=torch.float64)
    for i in range(0, len(uids), chunk):
        own = standardised(images(uids[i : i + chunk]))
        for j in range(0, i, chunk):
            found = own @ standardised(images(uids[j : j + chunk])).T
            values[i : i + chunk] = values[i : i + chunk].maximum(found.max(1).values)
        values[i : i + chunk] = values[i : i + chunk].maximum(_before(own).max(1).values)
    reason = "a copy of an earlier image of the set"
    said = zip(uids, values.tolist(), strict=True)
    return [Finding("copy", uid, value, limit, value <= limit, "" if value <= limit else reason) for uid, value in said]


def sanity(parents: Images, *, black_below: float = 0.02, duplicate_above: float = 0.995) -> tuple[Check, ...]:
    """The sanity checks a recipe runs, in the order of its reasons."""
    return (Finite(), Flat(black_below), Saturated(), Duplicate(parents, duplicate_above))
