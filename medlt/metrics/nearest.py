"""Nearest neighbours among unit vectors, and how much nearer the first is than the others: what tells a copy.

A plain distance to the nearest is small for every dull image. So it is held against the mean distance to the next K,

    isolation = d_1 / mean(d_2 .. d_{K+1}),   d = 1 - cosine, d_1 <= d_2 <= ...

(the adaptive distance of Carlini et al., arXiv 2301.13188, sec. 3.1, as a ratio): near 1 for an image that lies among
others, near 0 for one that has a single neighbour far closer than the rest. References are gone through in blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medlt.types import InputError


class Nearest(NamedTuple):
    """similarity [Q,k] (cosine, highest first) and the rows int64 [Q,k] of the references."""

    similarity: Tensor
    rows: Tensor


def nearest(queries: Tensor, references: Tensor, k: int, block: int = 8192) -> Nearest:
    """Return the k references [N,D] nearest to each of queries [Q,D], unit vectors; at most `block` of them at a time.

    Raises InputError where there are fewer than k references.
    """
    if not 0 < k <= len(references):
        raise InputError(f"{k} neighbours among {len(references)} images; ask for fewer or give more images")
    best, where = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(references), block):
        near = queries @ references[start : start + block].T
        numbers = torch.arange(start, start + near.shape[1]).expand_as(near)
        best, where = torch.cat([best, near], 1), torch.cat([where, numbers], 1)
        best, chosen = best.topk(min(k, best.shape[1]), 1)
        where = where.gather(1, chosen)
    return Nearest(best, where)


class Isolation(NamedTuple):
    """ratio [Q], see the module; row int64 [Q] and similarity [Q] of the nearest reference."""

    ratio: Tensor
    row: Tensor
    similarity: Tensor


def isolation(queries: Tensor, references: Tensor, neighbours: int = 50) -> Isolation:
    """Return how alone each of queries [Q,D] is with its nearest of references [N,D]; K is `neighbours`, or N - 1 if
    less.

    A vector that is not finite has the ratio NaN. Raises InputError for fewer than two references.
    """
    found = nearest(queries, references, min(neighbours + 1, max(2, len(references))))
    distance = (1 - found.similarity).clamp_min(0)
    ratio = distance[:, 0] / distance[:, 1:].mean(1).clamp_min(1e-9)
    return Isolation(ratio, found.rows[:, 0], found.similarity[:, 0])
