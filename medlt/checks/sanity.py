"""Check for defective images and copies: non-finite, flat, saturated, or a copy of a parent or of another image.

Every check is a frozen dataclass of one limit (`medlt.checks.limit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from medlt.checks.correlation import CHUNK, Images, most_alike, project, standardised
from medlt.checks.limit import check_limit
from medlt.checks.separation import pixels_of
from medlt.types import Batch, Check, CheckResult


@dataclass(frozen=True)
class Finite:
    """Value: number of pixels that are NaN, infinite or outside [0,1]. Any such pixel fails."""

    limit: float = 0.0
    name: ClassVar[str] = "finite"
    passes_above: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image."""
        good = batch.images.isfinite() & (batch.images >= 0) & (batch.images <= 1)
        bad = (~good).flatten(1).sum(1)
        return check_limit(self, batch, bad, "pixels that are not finite or not in [0,1]")


@dataclass(frozen=True)
class Flat:
    """Value: standard deviation of the pixels. A black, white or grey image has almost none."""

    limit: float = 0.02
    name: ClassVar[str] = "flat"
    passes_above: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image."""
        pixels = batch.images.flatten(1)
        spread = (pixels - pixels.mean(1, keepdim=True)).square().mean(1).sqrt()
        return check_limit(self, batch, spread, "the image is flat (black, white or grey)")


@dataclass(frozen=True)
class Saturated:
    """Value: share of pixels at exactly 0 or 1 after rounding to 8 bit. Most pixels of a radiograph lie between."""

    limit: float = 0.6
    name: ClassVar[str] = "saturated"
    passes_above: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image."""
        pixels = batch.images.nan_to_num(0, 0, 0).flatten(1)
        share = ((pixels <= 0.5 / 255) | (pixels >= 254.5 / 255)).double().mean(1)
        return check_limit(self, batch, share, "too large a share of the image is clipped to black or white")


@dataclass(frozen=True)
class Duplicate:
    """Value: highest correlation with a real parent, -1 without one.

    Other synthetic images are not compared here, because the result would depend on the division into batches. `copies`
    searches the finished set.
    """

    parents: Images
    limit: float = 0.995
    name: ClassVar[str] = "duplicate"
    passes_above: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image; batch.rows needs a column `parents`, a list of uids each."""
        own = standardised(batch.images)
        parents = list(pixels_of(batch.rows))
        known = sorted({uid for row in parents for uid in row})
        values = torch.full((len(own),), -1.0, dtype=own.dtype)
        if known:
            mine = torch.tensor([[uid in row for uid in known] for row in parents])
            values = torch.where(mine, own @ standardised(self.parents(known)).T, -1.0).max(1).values
        return check_limit(self, batch, values, "a copy of a real parent")


def copies(uids: Sequence[str], images: Images, limit: float = 0.995, chunk: int = CHUNK) -> list[CheckResult]:
    """Search a whole set for pairs: one CheckResult per image, and the later image of a pair fails.

    Value: its correlation with an earlier image, the highest of those compared; -1 if none can be above the limit.
    Every pair above the limit, in [0,1], is detected (`medlt.checks.correlation`). Memory holds two chunks at a time,
    and 36 numbers of each image.
    """
    projected = project(uids, images, chunk)
    values, _ = most_alike(projected, projected, limit, preceding=True, chunk=chunk)
    reason = "a copy of an earlier image of the set"
    scored = zip(uids, values.tolist(), strict=True)
    return [
        CheckResult("copy", uid, value, limit, value <= limit, "" if value <= limit else reason)
        for uid, value in scored
    ]


def sanity(parents: Images, *, min_std: float = 0.02, max_correlation: float = 0.995) -> tuple[Check, ...]:
    """Return the sanity checks of a recipe, in the order of precedence."""
    return (Finite(), Flat(min_std), Saturated(), Duplicate(parents, max_correlation))
