"""The runtime of training and sampling: device, precision, threads, seed and progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch

from medlt.rng import seed_of
from medlt.types import InputError, Progress

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Runtime:
    """Device, precision, threads, seed and progress of every training and of every method that samples.

    device: "cpu", "cuda" or "cuda:N"; precision: of the network's arithmetic, weights stay fp32; threads: of torch,
    None for torch's default; seed: of every random stream, see `medlt.rng`; progress: see `medlt.types.Progress`.
    """

    device: str
    precision: Precision
    threads: int | None
    seed: int
    progress: Progress = silent

    def seeded(self, *key: object) -> Runtime:
        """Return the same runtime with another seed, derived from this one and the key."""
        return replace(self, seed=seed_of(self.seed, *key))

    def at(self, precision: Precision) -> Runtime:
        """Return the same runtime with another precision."""
        return replace(self, precision=precision)

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of the precision."""
        return DTYPES[self.precision]

    def torch_device(self, purpose: str) -> torch.device:
        """Return the torch device. `purpose` is the name of the training or other use, for messages.

        Raises InputError if torch has no such device, and for fp16 on a CPU.
        """
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device: {self.device}, but torch detects no GPU; write device: cpu, or fix the driver")
        if self.precision == "fp16" and not self.device.startswith("cuda"):
            raise InputError(f"{purpose}: precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
        return torch.device(self.device)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Run the block with `threads` torch threads, and restore their number afterwards."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)
