"""Fuse two codes pixel by pixel under two class activation maps.

Chu et al., "Feature Space Augmentation for Long-Tailed Data", arXiv 2008.03673;
Elberg, Parra, Petrache, arXiv 2405.01705.

| symbol | meaning | shape |
|---|---|---|
| a, b | codes of the tail and the head image | [B,L,V,h,w] |
| T | A_c(tail) > tail_threshold: specific to the tail finding | bool [B,h,w] |
| G | A_c'(head) < head_threshold: generic in the head image | bool [B,h,w] |
| coin | true with the tail_probability of its sample | bool [B,h,w] |
| omega | pixels taken from the tail image, Omega_T | bool [B,h,w] |

| T | G | published | tail_first | tail_only |
|---|---|---|---|---|
| 1 | 0 | a | a | a |
| 1 | 1 | a where the coin is true, else b | a | a |
| 0 | 1 | b | b | b |
| 0 | 0 | a where the coin is true, else b | a where the coin is true, else b | b |

`tail_first` and `tail_only` are our additions. Most of the evidence for a tail finding lies where the head image is
generic (T = G = 1), and the published table leaves exactly these pixels to the coin. The coin of T = G = 0 moves pixels
of the tail image that have nothing to do with its finding, so `tail_only` moves none: the finding of the head image
stays, with its label. Under `tail_only` the size of T is drawn, not a threshold (`located`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medlt.rng import torch_generator
from medlt.types import InputError

RULES = ("published", "tail_first", "tail_only")


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def masks(
    cam_a: Tensor, cam_b: Tensor, tail_threshold: Sequence[float], head_threshold: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return T and G, bool [B,h,w], from maps [B,h,w] in [0,1] and one threshold of each a sample."""
    return cam_a > _column(tail_threshold, cam_a), cam_b < _column(head_threshold, cam_b)


def located(maps: Tensor, given: Tensor, area: Sequence[float]) -> Tensor:
    """Return T of `tail_only`, bool [B,h,w]: all cells that a given region touches, else the `area` of highest value.

    maps: [B,h,w] in [0,1]; given: bool [B]; area: share of the cells, one a sample. Of equal cells the first is taken;
    a cell of value 0 never is.
    """
    cells = maps.flatten(1)
    rank = torch.argsort(cells, dim=1, descending=True, stable=True).argsort(dim=1)
    wanted = torch.as_tensor([round(share * cells.shape[1]) for share in area], device=maps.device)
    top = given.to(maps.device)[:, None] | (rank < wanted[:, None])
    return (top & (cells > 0)).view(maps.shape)


def coins(seeds: Sequence[int], tail_probability: Sequence[float], shape: tuple[int, int]) -> Tensor:
    """Return independent coins, bool [B,h,w]; those of sample i depend on its seed and its tail_probability only."""
    tossed = [
        torch.rand(shape, generator=torch_generator("coin", int(seed))) < probability
        for seed, probability in zip(seeds, tail_probability, strict=True)
    ]
    return torch.stack(tossed)


def fuse(
    a: Tensor, b: Tensor, tail: Tensor, generic: Tensor, coin: Tensor, rule: str = "published"
) -> tuple[Tensor, Tensor]:
    """Return the fused code [B,L,V,h,w] and omega [B,h,w] by the table above; `rule` is one of RULES.

    Whole pixel vectors are taken, so the code stays on the simplex. Raises InputError for another rule.
    """
    if rule not in RULES:
        raise InputError(f"fusion: {rule!r} is not a rule; choose one of {', '.join(RULES)}")
    omega = torch.where(tail == generic, coin, tail)
    if rule == "tail_first":
        omega = omega | tail
    if rule == "tail_only":
        omega = tail
    return torch.where(omega[:, None, None], a, b), omega
