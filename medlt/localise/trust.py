"""Stages of localisation in an order of trust: each image gets the map of the first stage that knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medlt.localise.given import unknown
from medlt.types import Localise

GIVEN = ("mask", "box")
"""Stages whose maps a person drew."""
NOWHERE = "none"
"""Name of the stage where no stage knows: the map is 0 everywhere."""


@dataclass(frozen=True)
class Located:
    """Maps [B,h,w] in [0,1] without NaN, and the name of the stage that made each."""

    maps: Tensor
    stages: tuple[str, ...]

    @property
    def given(self) -> Tensor:
        """Return whether a person drew the map, bool [B]."""
        return torch.tensor([stage in GIVEN for stage in self.stages], dtype=torch.bool)


@dataclass(frozen=True)
class Trust:
    """Stages by name, the most trusted first, on a grid of `size` (h,w).

    Maps are kept in memory, by uid and finding.
    """

    stages: Mapping[str, Localise]
    size: tuple[int, int]
    _kept: dict[tuple[str, str], tuple[Tensor, str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        return self.locate(uids, [finding] * len(uids)).maps

    def locate(self, uids: Sequence[str], findings: Sequence[str]) -> Located:
        """Return the maps of images for the finding of each, and who made them."""
        wanted = dict.fromkeys(zip(uids, findings, strict=True))
        for finding in dict.fromkeys(findings):
            self._learn([uid for uid, one in wanted if one == finding and (uid, one) not in self._kept], finding)
        kept = [self._kept[key] for key in zip(uids, findings, strict=True)]
        maps = torch.stack([one for one, _ in kept]) if kept else torch.zeros(0, *self.size)
        return Located(maps, tuple(stage for _, stage in kept))

    def _learn(self, uids: Sequence[str], finding: str) -> None:
        """Keep the maps of images that have none yet."""
        left = list(uids)
        for name, stage in self.stages.items():
            maps = stage(left, finding) if left else unknown([], self.size)
            known = ~maps.isnan().flatten(1).any(1)
            self._kept.update({(uid, finding): (maps[i].clone(), name) for i, uid in enumerate(left) if known[i]})
            left = [uid for i, uid in enumerate(left) if not known[i]]
        self._kept.update({(uid, finding): (torch.zeros(self.size), NOWHERE) for uid in left})
