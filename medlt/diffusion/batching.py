"""Equal bytes for a row whatever batch it rides in: calls of one fixed shape, each on one thread, many at once.

Why. On a CPU the shape of a call picks the convolution and matrix kernels, and the number of threads picks how a
product is split; both change floats by about 1e-6, enough to flip an 8-bit rounding. Measured with torch 2.13 on an
x86 CPU, fp32, for AutoencoderTiny, AutoencoderKL and UNet2DModel with attention:

- one thread a call, fixed shape: a row's bytes depend on the row only, not on its neighbours, not on its position;
- two or more threads a call: a row's bytes depend on its position in networks with attention or group norm, and on
  the number of threads;
- another number of rows a call: other bytes (1 row against 2 or more always; 2 against 4 in the UNet);
- a float32 matrix product of 2 or 3 rows depends on the row's place even so: rows are 1, or 4 and more, for networks
  with an embedding (bfloat16 has no such gap).

So rows are computed in calls of exactly `rows` rows (the last one padded) on one thread each, and the cores are
filled by running several such calls at once. Bytes then depend on neither the batch, the number of threads nor how
many calls run at once; `position_free` checks the first claim on the machine at hand. Accelerators keep the fixed
shape but run one call at a time, and promise closeness, not bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

ROWS = 4
"""Default rows a call: within a tenth of the best throughput measured, and little is lost in padding one row."""


def cores() -> int:
    """CPU cores this process may use, as torch or the environment limits them."""
    return max(
        1,
        min(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            torch.get_num_threads(),
        ),
    )


@contextmanager
def lanes(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` Python threads that each run torch operations on one core. torch's own setting is restored."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _padded(tensors: Sequence[Tensor], start: int, rows: int) -> list[Tensor]:
    """Rows start..start+rows of each tensor as fresh memory; a short end is filled with its first row."""
    at = torch.arange(start, start + rows)
    at[at >= len(tensors[0])] = start
    return [tensor.index_select(0, at.to(tensor.device)) for tensor in tensors]


def fixed_batches(fn: Callable[..., Tensor], rows: int = ROWS, *, at_once: int | None = None) -> Callable[..., Tensor]:
    """Let `fn` (tensors [rows, ...] -> tensor [rows, ...]) take any number of rows, in calls of exactly `rows`.

    On the CPU `at_once` calls run side by side (default: as many as torch has threads), each on one thread, so a
    row of the answer is a function of the same row of the arguments only, bit for bit. `fn` must be safe to call from
    several threads and enter `torch.no_grad()` itself: both are per thread. Memory grows with rows x at_once.
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
    """Whether, on one thread, each row of fn(*tensors) stays bit for bit the same in another place, beside others.

    Row 0 is computed at every position, once among its neighbours and once among copies of itself.
    """
    n = len(tensors[0])
    with lanes(1) as pool:
        together = pool.submit(fn, *tensors).result()
        copies = pool.submit(fn, *(t[:1].repeat(n, *[1] * (t.ndim - 1)) for t in tensors)).result()
        rolled = pool.submit(fn, *(t.roll(1, 0) for t in tensors)).result()
    return bool(torch.equal(rolled, together.roll(1, 0)) and torch.equal(copies, together[:1].expand_as(copies)))
