"""Composites of real images, and what a denoiser changes in them.

A decoder loses the contrast of small lesions and marks every image that it makes. So only the change that the denoiser
made is decoded, and it is added to real pixels:

    image = real + soft enlarged(decode(z_refined) - decode(z_start))

`real` is a real image, or a composite of two; `z_start` are its latents before the denoiser, `z_refined` after it. What
the decoder loses or adds is the same in both terms, and cancels. Where `soft` is 0 the pixels are real, bit for bit.
Real images may have more pixels than decoded ones: then they keep their resolution and their noise.

A composite takes the pixels of the tail image inside a mask. Its seam is a soft edge (`feather`), or the solution of
Poisson's equation (Perez et al., "Poisson image editing", 2003): inside the mask, the gradients of the tail image; at
its edge, the values of the head image.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor
from torch.nn import functional as F

from medlt.types import InputError

Pixels = Callable[[Sequence[str]], Tensor]
"""Uids -> real images, float32 [B,1,S,S] in [0,1]."""
SEAMS = ("feather", "poisson")
FEATHER = 0.06
"""Default width of a soft edge, as a share of the side."""
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


def soft_mask(mask: Tensor, size: int, feather: float) -> Tensor:
    """Return weights [B,1,size,size] of masks, bool [B,h,w]: 1 inside, 0 from `feather` pixels outside on.

    In between they fall as a raised cosine of the distance to the next pixel inside.
    """
    inside = F.interpolate(mask[:, None].float().cpu(), (size, size), mode="nearest")[:, 0].bool()
    return torch.stack([_soft(one.numpy(), feather) for one in inside])[:, None] if len(mask) else inside[:, None] * 1.0


def _soft(inside: np.ndarray, feather: float) -> Tensor:
    if not inside.any() or feather <= 1:
        return torch.from_numpy(inside).float()
    distance = distance_transform_edt(~inside)
    fall = 0.5 + 0.5 * np.cos(math.pi * distance / feather)
    return torch.from_numpy(np.where(distance < feather, fall, 0.0)).float()


def composite(head: Tensor, tail: Tensor, soft: Tensor, seam: str = "feather") -> Tensor:
    """Return the tail image where `soft` is 1 and the head image where it is 0, all [B,1,H,W] in [0,1].

    seam: one of SEAMS. Where soft is 0 the head image stays bit for bit; with `poisson`, wherever it is below 1.
    """
    if seam == "feather":
        return torch.where(soft == 1, tail, head + soft * (tail - head))
    rows = zip(head[:, 0].numpy(), tail[:, 0].numpy(), soft[:, 0].numpy() == 1, strict=True)
    solved = torch.from_numpy(np.stack([poisson(*row) for row in rows])).to(head)[:, None] if len(head) else head
    return torch.where(soft == 1, solved.clamp(0.0, 1.0), head)


def poisson(head: np.ndarray, tail: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the image [H,W] that has the values of `head` outside and the gradients of `tail` inside, bool [H,W].

    It is tail + u inside, with u harmonic and u = head - tail at the edge. The border of the image has no condition. An
    `inside` that is everything gives the tail image.
    """
    if inside.all() or not inside.any():
        return tail if inside.all() else head
    number = np.full(inside.shape, -1)
    row, column = np.nonzero(inside)
    number[row, column] = np.arange(len(row))
    edge, known = (head - tail).astype(np.float64), np.zeros(len(row))
    count, links = np.zeros(len(row)), []
    for down, right in NEIGHBOURS:
        r, c = row + down, column + right
        here = np.flatnonzero((r >= 0) & (r < inside.shape[0]) & (c >= 0) & (c < inside.shape[1]))
        other = number[r[here], c[here]]
        count[here] += 1
        known[here] += np.where(other < 0, edge[r[here], c[here]], 0.0)
        links.append(np.stack([here, other])[:, other >= 0])
    at, other = np.concatenate(links, 1)
    every = np.arange(len(row))
    values = np.concatenate([count, -np.ones(len(at))])
    matrix = coo_matrix((values, (np.concatenate([every, at]), np.concatenate([every, other])))).tocsc()
    image = head.astype(np.float64)
    image[row, column] = tail[row, column] + spsolve(matrix, known, permc_spec="MMD_AT_PLUS_A")
    return image


def difference_decoded(real: Tensor, refined: Tensor, start: Tensor, soft: Tensor) -> Tensor:
    """Return real + soft (refined - start), within [0,1]; real and soft [B,1,H,W], `soft` may be broadcast.

    refined, start: decoded latents after and before the denoiser, [B,1,h,w]; their difference is enlarged to H x W. A
    row with an unusable one (NaN) is NaN.
    """
    change = refined - start
    if change.shape[-2:] != real.shape[-2:]:
        change = F.interpolate(change, real.shape[-2:], mode="bilinear")
    return (real + soft * change).clamp(0.0, 1.0)


class StartDecoder:
    """Decoder of start latents, which decodes each key once and keeps the last `most` images."""

    def __init__(self, decode: Callable[[Tensor], Tensor], most: int = 256) -> None:
        self._decode, self._most = decode, most
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __call__(self, keys: Sequence[Hashable], z: Tensor) -> Tensor:
        """Return images [B,1,H,W] of codec latents [B,C,h,w]; equal keys must have equal latents."""
        fresh = {key: keys.index(key) for key in dict.fromkeys(keys) if key not in self._kept}
        at = list(fresh.values())
        made = dict(zip(fresh, self._decode(z[at]).cpu() if at else (), strict=True))
        images = torch.stack([made[key] if key in made else self._kept[key] for key in keys])
        self._kept.update(made)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return images


@dataclass(frozen=True)
class Difference:
    """What difference decoding needs beside the latents.

    pixels: real images at the size of the result; starts: decoder of start latents; feather: width of the soft
    edge as a share of the side; seam: one of SEAMS.
    """

    pixels: Pixels
    starts: StartDecoder
    feather: float = FEATHER
    seam: str = "feather"

    def __post_init__(self) -> None:
        if self.seam not in SEAMS or not 0 <= self.feather < 1:
            raise InputError(
                f"seam {self.seam!r}, feather {self.feather}; give one of {', '.join(SEAMS)}, and a share of 0 to 1"
            )

    def soft(self, mask: Tensor, size: int) -> Tensor:
        """Return soft masks [B,1,size,size] of masks, bool [B,h,w]."""
        return soft_mask(mask, size, self.feather * size)
