"""Where and how work runs: device, precision, threads, seed and progress, handed to all that trains or samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch

from medlt import chance
from medlt.types import InputError, Progress

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def silent(stage: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Runtime:
    """Required by every training and by every method that samples; nothing has a device of its own.

    device: "cpu", "cuda" or "cuda:N"; precision: of the network's arithmetic, weights stay fp32; threads: of torch,
    None for as many as it has; seed: of every stream of randomness, see `medlt.chance`; progress: see
    `medlt.types.Progress`.
    """

    device: str
    precision: Precision
    threads: int | None
    seed: int
    progress: Progress = silent

    def seeded(self, *key: object) -> Runtime:
        """Return the same with a seed of its own, a function of this one and the key."""
        return replace(self, seed=chance.seed_of(self.seed, *key))

    def at(self, precision: Precision) -> Runtime:
        """Return the same at another precision."""
        return replace(self, precision=precision)

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return DTYPES[self.precision]

    def torch_device(self, purpose: str) -> torch.device:
        """Return the device for `purpose`, the name of a training or of another use.

        Raises InputError where torch has no such device, and for fp16 on a CPU.
        """
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device: {self.device}, but torch finds no GPU; write device: cpu, or mend the driver")
        if self.precision == "fp16" and not self.device.startswith("cuda"):
            raise InputError(f"{purpose}: precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
        return torch.device(self.device)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Run the block with torch on `threads` threads, and restore their number afterwards."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)
