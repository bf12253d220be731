"""How alike images are under shifts, mirroring, inversion, scale, rotation and light, as a whole and in patches.

An image becomes a field: a band of its spatial frequencies over the local contrast of that band. Brightness, contrast
and gamma change a field little, and an inverted image has the negative field. Fields are compared by normalised
cross-correlation in windows of a reference: its centre ("whole"), its quadrants and its middle ("patch").

1. Coarse, all pairs, 32 x 32: each window of each reference is compared with windows of the image up to 0.19 of the
   width away; the image as it is and shrunken, mirrored or not, for the centre also turned. The `candidates` of highest
   correlation of either sign are kept, from a longer list by the principal axes of the windows, which is much faster.
2. Fine, candidates only: each is aligned by a similarity map (shift, scale, rotation), by Gauss-Newton steps at 32 x 32
   and then 64 x 64 pixels (Baker & Matthews, Lucas-Kanade 20 Years On, IJCV 56, 2004). The distance is 1 minus the
   correlation at 64 x 64.
3. A mixture of two ("blend"): 1 minus the multiple correlation of the image with the aligned reference and a second.

The best of many transformations is nearer than any one of them, for a copy and for any other image. So a distance has a
meaning only beside that of images of other patients, which were searched in exactly the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from medlt.privacy.audit.alignment import SIZE, Alignment, Candidates, Window, cut
from medlt.privacy.audit.embedding import prepared
from medlt.privacy.audit.views import blurred

REACH = 6  # of coarse shifts, in pixels of the half size
SHRUNKEN, TURN = 1.15, 0.12  # the other scale, and the angle in radians, of the versions of an image
HALF, FULL = (1.0, 3.0), (0.4, 1.2)  # Gaussians in pixels of 64, between which the frequencies of the fields lie
KEPT = {"whole": 8, "patch": 2, "blend": 12}  # candidates that are aligned at the full size, or blended in register
FARTHEST = 2.0  # 1 minus the lowest correlation
AXES, LISTED = 64, 4  # principal axes of coarse windows, and candidates by these for one by the windows themselves
BLOCK = 48  # images at a time, so that the windows of a block fit into the cache


WINDOWS = (
    Window(20, 6, 6, "whole"), Window(16, 0, 0, "patch"), Window(16, 0, 16, "patch"), Window(16, 16, 0, "patch"),
    Window(16, 16, 16, "patch"), Window(16, 8, 8, "patch"),
)  # fmt: skip
FAMILIES = ("whole", "patch", "blend")
Place: TypeAlias = tuple[int, int, int]
"""Version of the image (see `_versions`), top and left of a window in it."""


def field(images: Tensor, fine: float, coarse: float) -> Tensor:
    """Return the band of images [B,1,H,W] between Gaussians of `fine` and `coarse` pixels, over its local contrast.

    The result is float32 [B,1,64,64]; images are uint8 or float in [0,1].
    """
    pixels = blurred(prepared(images, SIZE).cpu(), fine)
    band = pixels - blurred(pixels, coarse)
    contrast = blurred(band.square(), 1.5 * coarse).clamp_min(0).sqrt()
    return band / (contrast + 0.01)


def _versions(images: Tensor) -> list[Tensor]:
    """Return the image as it is, shrunken, and turned either way, each also mirrored."""
    maps = [(1.0, 0.0), (SHRUNKEN, 0.0), (math.cos(TURN), math.sin(TURN)), (math.cos(TURN), -math.sin(TURN))]
    out = []
    for scale, turn in maps:
        grid = torch.tensor([[scale, -turn, 0], [turn, scale, 0]]).expand(len(images), 2, 3)
        grid = functional.affine_grid(grid, list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, align_corners=False, padding_mode="border")
        out += [moved, moved.flip(-1)]
    return [images, images.flip(-1), *out[2:]]


def _places(window: Window) -> list[Place]:
    """Return where a window of the reference is compared with the image; the whole window in finer steps and turned."""
    end, whole = SIZE // 2 - window.width, window.family == "whole"
    out: list[Place] = []
    for version in range(8 if whole else 4):
        step = 1 if whole and version < 4 else 2
        tops, lefts = (
            [at for at in range(start % step, end + 1, step) if abs(at - start) <= REACH]
            for start in (window.top, window.left)
        )
        out += product([version], tops, lefts)
    return out


class Fields(NamedTuple):
    """Fields of images: of middle frequencies at half the size [B,1,32,32], and of high frequencies [B,1,64,64]."""

    half: Tensor
    full: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Fields:
        """Return the fields of images [B,1,H,W]."""
        return cls(functional.avg_pool2d(field(images, *HALF), 2), field(images, *FULL))


class Matches(NamedTuple):
    """Nearest reference of each image in each of F families: distance float32 [B,F] and row int64 [B,F]."""

    distance: Tensor
    row: Tensor


class Compressed(NamedTuple):
    """Unit vectors [N,D], their principal `axes` [D,k], and their coordinates on these, [k,N].

    The inner product of coordinates is nearly that of the vectors, at a fraction of the cost.
    """

    vectors: Tensor
    axes: Tensor
    coordinates: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Compressed:
        """Return unit vectors [N,D] compressed; the axes are those of up to 4,000 of them, evenly spaced."""
        some = vectors[:: 1 + len(vectors) // 4000]
        axes = torch.linalg.eigh(some.T @ some).eigenvectors[:, -AXES:]
        return cls(vectors, axes, (vectors @ axes).T.contiguous())


@dataclass(frozen=True)
class Matcher:
    """All references as fields, with their `owner` (patient) numbers int64 [N]."""

    fields: Fields
    owner: Tensor
    candidates: int = 32

    @classmethod
    def of(cls, images: Tensor, owner: Tensor, candidates: int = 32) -> Matcher:
        """Return the matcher of references [N,1,H,W]."""
        parts = [Fields.of(block) for block in torch.split(images, 512)]
        half, full = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(Fields(half, full), owner, min(candidates, len(images)))

    @cached_property
    def _whole(self) -> Tensor:
        """The whole windows of all references at full size, [N,w^2]."""
        width, top, left = (2 * one for one in WINDOWS[0][:3])
        return cut(self.fields.full, width, top, left)

    @cached_property
    def _windows(self) -> list[Compressed]:
        """The windows of all references."""
        return [Compressed.of(cut(self.fields.half, *window[:3])) for window in WINDOWS]

    def match(self, images: Tensor, owner: Tensor | None = None) -> Matches:
        """Return the nearest references of images [B,1,H,W]; an image is not compared with those of its own `owner`."""
        if not len(images):
            return Matches(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
        owners = torch.full((len(images),), -1) if owner is None else owner
        blocks = zip(torch.split(images, BLOCK), torch.split(owners, BLOCK), strict=True)
        parts = [self._block(block, whose) for block, whose in blocks]
        return Matches(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _block(self, images: Tensor, owner: Tensor) -> Matches:
        """Return the matches of one block of images."""
        sides = [Fields.of(one) for one in _versions(prepared(images, SIZE).cpu())]
        own = owner[:, None] == self.owner
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {family: [] for family in FAMILIES}
        for window, references in zip(WINDOWS, self._windows, strict=True):
            row, full = self._aligned(sides, window, self._coarse(sides, window, references, own))
            pairs[window.family].append((1 - full.correlation().view_as(row), row))
            if window is WINDOWS[0]:
                pairs["blend"].append((self._blended(full.window(), row, own), row))
        pairs["blend"] += [self._in_register(side, own) for side in sides[:2]]
        return Matches(*(torch.stack(part, 1) for part in zip(*(_lowest(p, own) for p in pairs.values()), strict=True)))

    def _coarse(self, sides: list[Fields], window: Window, references: Compressed, own: Tensor) -> Candidates:
        """Return the references of highest correlation in one window, of a longer list by compressed vectors."""
        places = _places(window)
        cuts = torch.stack([cut(sides[version].half, window.width, *at) for version, *at in places], 1)  # [B,P,D]
        best = torch.zeros(len(cuts), len(references.vectors))
        for place in (cuts @ references.axes).transpose(0, 1).contiguous():
            torch.maximum(best, (place @ references.coordinates).abs_(), out=best)
        row = best.masked_fill_(own, -1).topk(min(LISTED * self.candidates, best.shape[1]), 1).indices
        again = torch.einsum("bpd,bkd->bkp", cuts, references.vectors[row])
        high, at = again.abs().masked_fill_(own.gather(1, row)[..., None], -1).max(2)
        chosen = high.topk(self.candidates, 1).indices
        at = at.gather(1, chosen)
        sign = again.gather(1, chosen[..., None].expand(-1, -1, len(places))).gather(2, at[..., None])[..., 0].sign()
        return Candidates(row.gather(1, chosen), torch.tensor(places)[at], sign)

    def _aligned(self, sides: list[Fields], window: Window, near: Candidates) -> tuple[Tensor, Alignment]:
        """Return the rows [B,k] of the most alike candidates in one window, and their alignments."""
        half = Alignment.start(torch.stack([one.half for one in sides], 1), self.fields.half, window, near)
        half = half.best(4)
        kept = half.correlation().view_as(near.row).topk(min(KEPT[window.family], self.candidates), 1).indices
        near = Candidates(
            near.row.gather(1, kept), near.place.gather(1, kept[..., None].expand(-1, -1, 3)),
            near.sign.gather(1, kept),
        )  # fmt: skip
        maps = half.map.view(len(kept), -1, 4).gather(1, kept[..., None].expand(-1, -1, 4)).flatten(0, 1)
        full = Alignment.start(torch.stack([one.full for one in sides], 1), self.fields.full, window, near)
        return near.row, replace(full, map=maps).best(4)

    def _in_register(self, side: Fields, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return blend distances [B,K] without alignment, for the K most alike references, and their rows."""
        kept = min(KEPT["blend"], self.candidates)
        image = cut(side.full, *(2 * one for one in WINDOWS[0][:3]))
        row = (image @ self._whole.T).abs_().masked_fill_(own, -1).topk(kept, 1).indices
        return self._blended(image.repeat_interleave(kept, 0), row, own), row

    def _blended(self, image: Tensor, row: Tensor, own: Tensor) -> Tensor:
        """Return 1 minus the multiple correlation of images with a reference and the best less correlated one, [B,K].

        image: aligned with reference `row` [B,K], unit vectors [B*K,D]. For an image u, its reference a and another b,
        R^2 = (u.a)^2 + (u.b - (u.a)(a.b))^2 / (1 - (a.b)^2).
        """
        first = self._whole[row.flatten()]
        one = (image * first).sum(1, keepdim=True)
        shared = first @ self._whole.T
        second = image @ self._whole.T
        rest = (second - one * shared).square_() / (1 - shared.square_()).clamp_min_(0.05)
        rest.masked_fill_(own.repeat_interleave(row.shape[1], 0) | (second.abs_() > one.abs()), 0)
        return 1 - (one[:, 0].square() + rest.amax(1)).clamp(0, 1).sqrt().view_as(row)


def _lowest(pairs: list[tuple[Tensor, Tensor]], own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest distance [B] and its row [B] of pairs of distances and rows, [B,K] each, without own rows."""
    distance, row = (torch.cat(part, 1) for part in zip(*pairs, strict=True))
    low, which = distance.masked_fill(own.gather(1, row), FARTHEST).min(1)
    return low, row.gather(1, which[:, None])[:, 0]
