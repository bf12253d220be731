"""Sources of the noise and of the sampling of private training.

Published results are private only against somebody who does not know the noise. So the noise of a published epsilon is
cryptographic: `Secure` reads every bit from the operating system and stores none. A resumed training draws new noise;
noise that can be drawn again can be removed. `Seeded` is for tests and exact reruns: a person with the seed can remove
the noise.

Normal numbers come from the Box-Muller transform of 53-bit uniforms in float64, with tails to 8.5 standard deviations,
beyond which lie 1e-17 of all numbers. Against attacks on floating point (Mironov 2012; Holohan & Braghin, arXiv
2107.10138) the noise is added in float64 and the sum is rounded once, to float32. One float32 stands for 2^29 sums in
float64, which hides the gaps between possible values of float64 noise. Opacus adds four numbers and halves them
instead, which costs four times as much.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medlt.rng import torch_generator

PIECE = 1 << 18
BITS = 53


class Randomness(Protocol):
    """A source of noise and sampling."""

    @property
    def secure(self) -> bool:
        """Whether nobody can draw the same numbers again."""
        ...

    @property
    def description(self) -> str:
        """The source, as a sentence for the ledger."""
        ...

    def at(self, step: int) -> Randomness:
        """Return the source of one step."""
        ...

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return independent normal numbers of mean 0 and standard deviation 1, on the CPU."""
        ...

    def uniform(self, count: int) -> np.ndarray:
        """Return independent float64 [count] in [0, 1), multiples of 2^-53."""
        ...


class Secure:
    """The operating system's cryptographic generator (os.urandom). It has no seed and never repeats."""

    secure = True
    description = "Noise and sampling come from the operating system's cryptographic generator; no seed exists."

    def at(self, step: int) -> Secure:
        """Return this object; its numbers never repeat."""
        return self

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return independent normal numbers, see `Randomness`."""
        count = math.prod(shape)
        values = torch.empty(count, dtype=dtype)
        for start in range(0, count, PIECE):
            piece = values[start : start + PIECE]
            piece.copy_(box_muller(_mantissas(2 * -(-len(piece) // 2)))[: len(piece)])
        return values.reshape(tuple(shape))

    def uniform(self, count: int) -> np.ndarray:
        """See `Randomness`."""
        return (_mantissas(count).double() * 2.0**-BITS).numpy()


class Seeded:
    """Random numbers that depend on seed, step and order of calls, for tests and exact reruns."""

    secure = False

    def __init__(self, seed: int, step: int = 0) -> None:
        self.seed = seed
        self.rng = torch_generator("private training", seed, step)

    @property
    def description(self) -> str:
        """The source, as a sentence for the ledger."""
        return "Noise and sampling come from a seed, for tests; a person with the seed can remove the noise."

    def at(self, step: int) -> Seeded:
        """Return the source of this step, from its beginning."""
        return Seeded(self.seed, step)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Randomness`."""
        return torch.randn(tuple(shape), generator=self.rng, dtype=torch.float64).to(dtype)

    def uniform(self, count: int) -> np.ndarray:
        """See `Randomness`."""
        drawn = torch.randint(0, 1 << BITS, (count,), generator=self.rng)
        return (drawn.double() * 2.0**-BITS).numpy()


def _mantissas(count: int) -> Tensor:
    """Return uniform integers int64 [count] of 53 bits."""
    if not count:
        return torch.zeros(0, dtype=torch.int64)
    raw = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
    return (raw >> (64 - BITS)) & ((1 << BITS) - 1)


def box_muller(integers: Tensor) -> Tensor:
    """Return standard normal numbers float64 [N] from uniform 53-bit integers int64 [N], N even.

    r cos(a), r sin(a) of r = sqrt(-2 log u), u in (0, 1], and a in [0, 2 pi).
    """
    first, second = integers.double().chunk(2) if len(integers) else (integers.double(), integers.double())
    radius = torch.log_((first + 1) * 2.0**-BITS).mul_(-2.0).sqrt_()
    angle = second * (2 * math.pi * 2.0**-BITS)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])
