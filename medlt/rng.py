"""Random generators that are named by their purpose. All randomness of the package starts here.

A stream depends on its key only (a seed, a stage name, a step, a uid), never on what ran before. Therefore training
resumes from the number of a step alone, and one image can be made again without the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def seed_of(*key: object) -> int:
    """Return a 63-bit seed from the key's printed form."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def numpy_generator(*key: object) -> np.random.Generator:
    """Return a numpy generator for this key."""
    return np.random.default_rng(seed_of(*key))


def torch_generator(*key: object) -> torch.Generator:
    """Return a CPU torch generator for this key."""
    import torch  # numpy's part of this module needs none

    return torch.Generator().manual_seed(seed_of(*key))


def noise_like(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return unit normal noise [len(seeds), *shape], float32. Row i depends on seeds[i] only."""
    import torch

    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(rows)


def batch_indices(n: int, size: int, step: int, *key: object) -> np.ndarray:
    """Return the rows of training step `step`, int64 [size].

    Each epoch is a seeded permutation of range(n). Epochs are cut into full batches of `size`; rows that do not fill
    the last batch of an epoch start the first batch of the next one. The function depends on its arguments only. The
    permutations of the last epochs are kept, so that a step costs O(size).
    """
    positions = np.arange(step * size, (step + 1) * size)
    epochs, places = np.divmod(positions, n)
    rows = np.empty(size, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        rows[now] = _order(n, seed_of(*key, "epoch", int(epoch)))[places[now]]
    return rows


@lru_cache(maxsize=8)
def _order(n: int, seed: int) -> np.ndarray:
    """Return a permutation of range(n); 8 bytes a row."""
    return np.random.default_rng(seed).permutation(n)
