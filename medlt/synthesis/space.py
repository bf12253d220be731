"""The two spaces of latents: the codec's own and standardised ones."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Standardises(Protocol):
    """Latents to unit spread a channel, and back."""

    def to(self, z: Tensor) -> Tensor:
        """Codec latents [B,C,h,w] standardised."""
        ...

    def back(self, z: Tensor) -> Tensor:
        """The inverse."""
        ...
