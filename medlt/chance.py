"""Where all randomness starts: generators named by what they are for.

A stream is a function of its key (a seed, a stage name, a step, a uid), never of what ran before it. So a training
step can be resumed from its number alone, and one image remade without the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def seed_of(*key: object) -> int:
    """A 63-bit seed from the key's printed form."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def rng(*key: object) -> np.random.Generator:
    """A numpy generator for this key."""
    return np.random.default_rng(seed_of(*key))


def generator(*key: object) -> torch.Generator:
    """A CPU torch generator for this key."""
    return torch.Generator().manual_seed(seed_of(*key))


def noise_like(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit normal noise [len(seeds), *shape], float32; row i depends on seeds[i] only."""
    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(draws)


def batch_indices(n: int, size: int, step: int, *key: object) -> np.ndarray:
    """Rows of training step `step`: epochs of seeded permutations of range(n), cut into full batches of `size`.

    A pure function of its arguments; the last rows of an epoch that do not fill a batch open the next one.
    """
    wanted = np.arange(step * size, (step + 1) * size)
    orders = {int(e): rng(*key, "epoch", int(e)).permutation(n) for e in np.unique(wanted // n)}
    return np.array([orders[int(i // n)][i % n] for i in wanted])
