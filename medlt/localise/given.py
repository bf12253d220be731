"""Where a finding is, as a person drew it: masks, boxes and sides.

A stage of localisation is called as `medlt.types.Localise`. Where it does not know, its map is NaN everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medlt.data.regions import Regions
from medlt.types import Localise

Side = Literal["left", "right"]
Sides = Mapping[str, Mapping[str, Side]]
"""Finding -> uid -> the patient's side. The patient's left is on the right of a frontal image."""


def unknown(uids: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Return maps [B,h,w] of NaN."""
    return torch.full((len(uids), *size), torch.nan)


@dataclass(frozen=True)
class Given:
    """Given regions of one kind: the share of each cell that is covered, on a grid of `size` (h,w)."""

    regions: Regions
    kind: Literal["mask", "box"]
    size: tuple[int, int]

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        maps = unknown(uids, self.size)
        at = [i for i, uid in enumerate(uids) if self.regions.kind(uid, finding) == self.kind]
        if at:
            maps[at] = self.regions.masks([uids[i] for i in at], finding, self.size)
        return maps


@dataclass(frozen=True)
class OnSide:
    """The map of the stage `inner` on the given side alone, for the images whose side is known."""

    inner: Localise
    sides: Sides
    size: tuple[int, int]

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        maps, known = unknown(uids, self.size), self.sides.get(finding, {})
        at = [i for i, uid in enumerate(uids) if uid in known]
        if at:
            maps[at] = on_side(self.inner([uids[i] for i in at], finding), [known[uids[i]] for i in at])
        return maps


def on_side(maps: Tensor, sides: Sequence[Side]) -> Tensor:
    """Return maps [B,h,w] that are 0 outside the patient's given side, scaled to a maximum of 1.

    A map without evidence there becomes 1 on the whole side. The middle column of an odd width is on both sides.
    """
    right = torch.arange(maps.shape[-1]) >= maps.shape[-1] // 2
    here = torch.stack([right if side == "left" else right.flip(0) for side in sides])[:, None].expand_as(maps)
    kept = torch.where(here, maps.nan_to_num(0.0), 0.0)
    high = kept.amax((1, 2), keepdim=True)
    return torch.where(high > 0, kept / torch.where(high > 0, high, 1.0), here.to(maps.dtype))
