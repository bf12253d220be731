"""Nearest neighbours among unit vectors, and how much nearer the first is than the others, to detect copies.

The distance to the nearest neighbour is small for every image with little contrast. So it is divided by the mean
distance to the next K,

    isolation = d_1 / mean(d_2 .. d_{K+1}),   d = 1 - cosine, d_1 <= d_2 <= ...

(the adaptive distance of Carlini et al., arXiv 2301.13188, sec. 3.1, as a ratio). It is near 1 for an image among many
similar ones, near 0 for an image with one neighbour far closer than the rest. References are searched in blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medlt.types import InputError

PAIRS = 1 << 23
"""Most similarities in memory at a time."""


class Nearest(NamedTuple):
    """Nearest references: similarity [Q,k] (cosine, highest first) and their rows, int64 [Q,k]."""

    similarity: Tensor
    rows: Tensor


def nearest(
    queries: Tensor, references: Tensor, k: int, block: int = 8192, own: Tensor | None = None
) -> Nearest:  # fmt: skip
    """Return the k references [N,D] nearest to each of queries [Q,D], all unit vectors, searched in blocks.

    Of `block` references, or fewer for many queries.

    own: bool [Q,N], pairs that are not compared; they come last, with similarity -1.

    Raises InputError if there are fewer than k references.
    """
    if not 0 < k <= len(references):
        raise InputError(f"{k} neighbours among {len(references)} images; request fewer neighbours or give more images")
    block = max(1, min(block, PAIRS // max(1, len(queries))))
    best, where = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(references), block):
        near = queries @ references[start : start + block].T
        if own is not None:
            near = near.masked_fill(own[:, start : start + block], -1)
        top = near.topk(min(k, near.shape[1]), 1)
        best, where = torch.cat([best, top.values], 1), torch.cat([where, top.indices + start], 1)
        best, chosen = best.topk(min(k, best.shape[1]), 1)
        where = where.gather(1, chosen)
    return Nearest(best, where)


class Isolation(NamedTuple):
    """Isolation ratio [Q], see the module; row int64 [Q] and similarity [Q] of the nearest reference."""

    ratio: Tensor
    row: Tensor
    similarity: Tensor


def isolation(
    queries: Tensor, references: Tensor, neighbours: int = 50, own: Tensor | None = None
) -> Isolation:  # fmt: skip
    """Return the isolation ratio of queries [Q,D] with their nearest reference of [N,D].

    K is `neighbours`, or N - 1 if that is less. A vector that is not finite has the ratio NaN. own: bool
    [Q,N], pairs that are not compared. Raises InputError for fewer than two references.
    """
    closest = nearest(queries, references, min(neighbours + 1, max(2, len(references))), own=own)
    distance = (1 - closest.similarity).clamp_min(0)
    ratio = distance[:, 0] / distance[:, 1:].mean(1).clamp_min(1e-9)
    return Isolation(ratio, closest.rows[:, 0], closest.similarity[:, 0])
