"""Where latents live: the codec's own space and the standardised one, and how many rows a call takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.memory import BackOff


class Standardises(Protocol):
    """Latents to unit spread a channel, and back."""

    def to(self, z: Tensor) -> Tensor:
        """Codec latents [B,C,h,w] standardised."""
        ...

    def back(self, z: Tensor) -> Tensor:
        """The inverse."""
        ...


def in_calls(fn: Callable[..., Tensor], device: torch.device, batch: int) -> Callable[..., Tensor]:
    """`fn` over any number of rows: on a CPU in calls that give a row its own bytes, elsewhere in calls of up to
    `batch` rows, fewer from then on when memory runs out."""
    return fixed_batches(fn) if device.type == "cpu" else BackOff(fn, batch)
