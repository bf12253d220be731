"""The two spaces of latents, the codec's own and the standardised one, and the number of rows in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.memory import BackOff


class Standardises(Protocol):
    """Scale latents to unit spread in each channel, and back."""

    def to(self, z: Tensor) -> Tensor:
        """Return codec latents [B,C,h,w], standardised."""
        ...

    def back(self, z: Tensor) -> Tensor:
        """Return standardised latents [B,C,h,w] as codec latents."""
        ...


def in_calls(fn: Callable[..., Tensor], device: torch.device, batch: int) -> Callable[..., Tensor]:
    """Return `fn` for any number of rows.

    On a CPU, calls have a fixed number of rows, so that the bytes of a row depend on that row alone. Elsewhere, calls
    have up to `batch` rows, and fewer once memory runs out.
    """
    return fixed_batches(fn) if device.type == "cpu" else BackOff(fn, batch)
