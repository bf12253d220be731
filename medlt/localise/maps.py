"""Where a finding is, by the evidence of classifiers: of images, and of the simplicial code.

The map of an image averages several networks and several small shifts of the image (`SHIFTS`), each the summed LayerCAM
of three layers (`medlt.classify.cam`). A network's single map follows its grid and its own accidents; their mean does
not. The bytes of a map depend on its image alone, not on the others of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.classify.cam import frozen, layer_activation_map, peak_one
from medlt.classify.networks import Network
from medlt.classify.train import Classifier
from medlt.diffusion.batching import ROWS, fixed_batches
from medlt.localise.code_explainer import CodeExplainer

SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Shifts down and to the right, in units of SHIFT."""
SHIFT = 1 / 21
"""Share of the side: 3 of 64 pixels."""


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Return images [B,C,H,W] moved by pixels; the border is repeated."""
    height, width = images.shape[-2:]
    high, wide = abs(down), abs(right)
    padded = F.pad(images, (wide, wide, high, high), mode="replicate")
    return padded[..., high - down : high - down + height, wide - right : wide - right + width]


def mean_over_shifts(net: Network, images: Tensor, finding: Tensor) -> Tensor:
    """Return summed maps [B,S,S] >= 0 of images [B,1,S,S] in [0,1], over SHIFTS, each moved back."""
    step, rows = max(1, round(images.shape[-1] * SHIFT)), len(images)
    moves = [(down * step, right * step) for down, right in SHIFTS]
    moved = torch.cat([shifted(images, *move) for move in moves])
    maps = torch.split(layer_activation_map(net, moved, finding.repeat(len(moves)))[:, None], rows)
    back = [shifted(one, -down, -right) for one, (down, right) in zip(maps, moves, strict=True)]
    return torch.stack(back).sum(0)[:, 0]


@dataclass(frozen=True, eq=False)
class ImageMap:
    """Maps of image classifiers, on a grid of `size` (h,w); each is made once and kept in memory.

    members: classifiers of one image size, trained for `findings`; images: uids -> uint8 or float in [0,1] [B,1,S,S];
    left_out: uid -> number of the member that must not see this image, because it checks what is made
    from it.
    """

    members: Sequence[Classifier]
    images: Callable[[Sequence[str]], Tensor]
    findings: Sequence[str]
    size: tuple[int, int]
    left_out: Mapping[str, int] | None = None
    rows: int = ROWS
    _kept: dict[tuple[str, str], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        if not uids:
            return torch.zeros(0, *self.size)
        if fresh := [uid for uid in dict.fromkeys(uids) if (uid, finding) not in self._kept]:
            self._kept.update(zip(((uid, finding) for uid in fresh), self._make(fresh, finding), strict=True))
        return torch.stack([self._kept[uid, finding] for uid in uids])

    def _make(self, uids: Sequence[str], finding: str) -> Tensor:
        images = self.images(uids)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        column = torch.full((len(uids),), list(self.findings).index(finding))
        total = torch.zeros(len(uids), *images.shape[-2:])
        for number, member in enumerate(self.members):
            total += self._of(member, images, column) * self._weights(number, uids)
        return peak_one(F.interpolate(total[:, None], self.size, mode="area")[:, 0])

    def _of(self, member: Classifier, images: Tensor, column: Tensor) -> Tensor:
        """Return the maps [B,S,S] of one member."""
        net = frozen(member)
        device = net.head.weight.device
        mapped = fixed_batches(lambda x, c: mean_over_shifts(net, x, c), self.rows)
        return mapped(images.to(device), column.to(device)).cpu()

    def _weights(self, number: int, uids: Sequence[str]) -> Tensor:
        """Return 1 or 0 for each image, [B,1,1]."""
        out = self.left_out or {}
        return torch.tensor([float(out.get(uid, -1) != number) for uid in uids])[:, None, None]


@dataclass(frozen=True, eq=False)
class CodeMap:
    """Maps of the classifier on codes; see `CodeExplainer`. `size` is (h,w) of a latent."""

    explainer: CodeExplainer
    findings: Sequence[str]
    size: tuple[int, int]

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        if not uids:
            return torch.zeros(0, *self.size)
        column = np.full(len(uids), list(self.findings).index(finding))
        return torch.from_numpy(self.explainer.maps_of(uids, column)).view(-1, *self.size)
