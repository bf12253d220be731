"""Tiled decoding of large images: overlapping tiles of a latent are decoded as rows of one batch and blended.

A purely convolutional network gives the untiled image if the overlap is wider than its reach. Networks that normalise
or attend over the whole image differ slightly everywhere, as with `AutoencoderKL.enable_tiling`, which decodes one tile
at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Return the starts of tiles on an axis: they cover it, stay inside, and neighbours share at least `overlap`."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def ramp(size: int, edge: int) -> Tensor:
    """Return weights [size] that rise over the first `edge` pixels, stay 1, and fall over the last; none is 0."""
    up = (torch.arange(size) + 1) / (edge + 1)
    return torch.minimum(up, up.flip(0)).clamp(max=1)


def tiled(decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
    """Decode latents [B,C,h,w] to images [B,1,H,W] in tiles of `tile` latent pixels that share `overlap`.

    `decode` takes the tiles of all images as rows of one batch. Raises ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} pixels cannot share {overlap}; give 0 to {tile - 1}")
    rows, _, height, width = latents.shape
    corners = [(y, x) for y in starts(height, tile, overlap) for x in starts(width, tile, overlap)]
    pieces = decode(torch.cat([latents[:, :, y : y + tile, x : x + tile] for y, x in corners]))
    factor = pieces.shape[-1] // min(tile, width)
    down, along = (ramp(side, overlap * factor).to(pieces) for side in pieces.shape[-2:])
    weight = down[:, None] * along
    total = pieces.new_zeros(1, 1, height * factor, width * factor)
    image = total.repeat(rows, 1, 1, 1)
    for piece, (y, x) in zip(torch.split(pieces, rows), corners, strict=True):
        at = (..., slice(y * factor, y * factor + len(down)), slice(x * factor, x * factor + len(along)))
        image[at] += piece * weight
        total[at] += weight
    return image / total
