"""Batch-independent results: calls of one fixed shape, each on one thread, several at a time.

On a CPU the shape of a call selects the convolution and matrix kernels, and the number of threads selects how a product
is split. Both change floats by about 1e-6, enough to change an 8-bit rounding. Measured with torch 2.13 on an x86 CPU,
fp32, for AutoencoderTiny, AutoencoderKL and UNet2DModel with attention:

- one thread per call, fixed shape: the bytes of a row depend on that row only, not on its neighbours or its position;
- two or more threads per call: the bytes of a row depend on its position in networks with attention or group norm, and
  on the number of threads;
- another number of rows per call gives other bytes (1 row differs from 2 or more always; 2 from 4 in the UNet);
- a float32 matrix product of 2 or 3 rows depends on the position of a row even then. For networks with an embedding,
  use 1 row, or 4 and more (bfloat16 has no such gap).

Therefore calls have exactly `rows` rows (the last one is padded) and one thread each, and several calls run at once to
use all cores. The bytes then depend on neither the batch, nor the number of threads, nor the number of parallel calls.
`position_free` checks the first claim on the current machine. Accelerators keep the fixed shape but run one call at a
time; there results are close, but not equal in every byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

ROWS = 4
"""Default rows per call: within a tenth of the best measured throughput, at a low cost of padding a single row."""


def cores() -> int:
    """Return the number of CPU cores this process may use, as limited by torch or the environment."""
    return max(
        1,
        min(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            torch.get_num_threads(),
        ),
    )


@contextmanager
def lanes(count: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of `count` Python threads, each running torch on one core; restore torch's threads afterwards."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _padded(tensors: Sequence[Tensor], start: int, rows: int) -> list[Tensor]:
    """Return rows start..start+rows of each tensor in new memory; a short end is filled with its first row."""
    at = torch.arange(start, start + rows)
    at[at >= len(tensors[0])] = start
    return [tensor.index_select(0, at.to(tensor.device)) for tensor in tensors]


def fixed_batches(fn: Callable[..., Tensor], rows: int = ROWS, *, at_once: int | None = None) -> Callable[..., Tensor]:
    """Return a function over any number of rows that calls `fn` (tensors [rows, ...] -> [rows, ...]) on `rows` each.

    On the CPU `at_once` calls run in parallel (default: one per torch thread), each on one thread. A row of the result
    depends on the same row of the arguments only, bit for bit. `fn` must be thread-safe and enter `torch.no_grad()`
    itself, because grad mode is per thread. Memory grows with rows x at_once.
    """

    def call(*tensors: Tensor) -> Tensor:
        def piece(start: int) -> Tensor:
            return fn(*_padded(tensors, start, rows))

        starts = range(0, len(tensors[0]), rows)
        if tensors[0].device.type != "cpu":
            return torch.cat([piece(start) for start in starts])[: len(tensors[0])]
        with lanes(min(at_once or cores(), len(starts))) as pool:
            return torch.cat(list(pool.map(piece, starts)))[: len(tensors[0])]

    return call


@torch.no_grad()
def position_free(fn: Callable[..., Tensor], *tensors: Tensor) -> bool:
    """Return True if the bytes of each row of fn(*tensors) do not depend on its position or its neighbours.

    The test runs on one thread. It computes row 0 at every position, once with its neighbours and once with copies.
    """
    n = len(tensors[0])
    with lanes(1) as pool:
        together = pool.submit(fn, *tensors).result()
        copies = pool.submit(fn, *(t[:1].repeat(n, *[1] * (t.ndim - 1)) for t in tensors)).result()
        rolled = pool.submit(fn, *(t.roll(1, 0) for t in tensors)).result()
    return bool(torch.equal(rolled, together.roll(1, 0)) and torch.equal(copies, together[:1].expand_as(copies)))
