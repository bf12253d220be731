"""Where the noise and the draws of private training come from.

What is published is private against whoever does not know the noise, so for an epsilon that is published the noise is
cryptographic: `Secure` reads every bit from the operating system, and nothing of it is kept. A training that is killed
and goes on draws afresh, and must: noise that could be drawn again could be taken off. `Seeded` is for tests and exact
reruns; who knows its seed takes the noise off.

Normal numbers are made by Box and Muller's transform from 53-bit uniforms, in float64: tails to 8.5 standard
deviations, beyond which lie 1e-17 of all numbers. Against attacks on floating point (Mironov 2012; Holohan & Braghin,
arXiv 2107.10138) the noise is added in float64 and the sum rounded once, to float32: of the 2^29 sums in float64 that
one float32 stands for, none can be told, so holes in what float64 noise can be are covered. Opacus adds four numbers
and halves them instead, which costs four times as much.
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
    """What noise and sampling are drawn from; `told` is the sentence of the ledger."""

    @property
    def secure(self) -> bool:
        """Whether nobody can draw it again."""
        ...

    @property
    def told(self) -> str:
        """Where it comes from, in a sentence."""
        ...

    def at(self, step: int) -> Randomness:
        """Return the randomness of one step."""
        ...

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return independent normal numbers of mean 0 and standard deviation 1, on the CPU."""
        ...

    def uniform(self, count: int) -> np.ndarray:
        """Return independent float64 [count] in [0, 1), multiples of 2^-53."""
        ...


class Secure:
    """From the operating system's cryptographic generator (os.urandom), never the same twice. No key is held."""

    secure = True
    told = "Noise and sampling from the operating system's cryptographic generator; no seed exists."

    def at(self, step: int) -> Secure:
        """Return itself: no step's randomness is that of another."""
        return self

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See Randomness."""
        count = math.prod(shape)
        values = torch.empty(count, dtype=dtype)
        for start in range(0, count, PIECE):
            piece = values[start : start + PIECE]
            piece.copy_(box_muller(_mantissas(2 * -(-len(piece) // 2)))[: len(piece)])
        return values.reshape(tuple(shape))

    def uniform(self, count: int) -> np.ndarray:
        """See Randomness."""
        return (_mantissas(count).double() * 2.0**-BITS).numpy()


class Seeded:
    """A function of seed, step and order of calls, for tests and exact reruns."""

    secure = False

    def __init__(self, seed: int, step: int = 0) -> None:
        self.seed = seed
        self.draw = torch_generator("private training", seed, step)

    @property
    def told(self) -> str:
        """See Randomness."""
        return "Noise and sampling from a seed, for tests: who knows the seed can take the noise off."

    def at(self, step: int) -> Seeded:
        """Return the randomness of this step, from its beginning."""
        return Seeded(self.seed, step)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See Randomness."""
        return torch.randn(tuple(shape), generator=self.draw, dtype=torch.float64).to(dtype)

    def uniform(self, count: int) -> np.ndarray:
        """See Randomness."""
        drawn = torch.randint(0, 1 << BITS, (count,), generator=self.draw)
        return (drawn.double() * 2.0**-BITS).numpy()


def _mantissas(count: int) -> Tensor:
    """Return uniform integers int64 [count] of 53 bits."""
    if not count:
        return torch.zeros(0, dtype=torch.int64)
    raw = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
    return (raw >> (64 - BITS)) & ((1 << BITS) - 1)


def box_muller(integers: Tensor) -> Tensor:
    """Return the standard normal float64 [N] from uniform 53-bit integers int64 [N], N even.

    r cos(a), r sin(a) of r = sqrt(-2 log u), u in (0, 1], and a in [0, 2 pi).
    """
    first, second = integers.double().chunk(2) if len(integers) else (integers.double(), integers.double())
    radius = torch.log_((first + 1) * 2.0**-BITS).mul_(-2.0).sqrt_()
    angle = second * (2 * math.pi * 2.0**-BITS)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])
