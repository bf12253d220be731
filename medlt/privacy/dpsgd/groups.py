"""Which rows of a batch are whose, and what a unit's gradient keeps of its length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medlt.types import InputError

Loss = Callable[[], Tensor]
"""-> losses [B] of the rows, with their graph."""


@dataclass(frozen=True)
class Groups:
    """Which unit each row belongs to: `unit` int64 [B], 0..G-1 without gaps and rising; `sizes` int64 [G]."""

    unit: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, groups: Any, device: torch.device) -> Groups:
        """Return from any numbers [B], equal ones beside each other.

        Raises ValueError where a group is in two pieces.
        """
        numbers = torch.as_tensor(groups, dtype=torch.int64, device=device)
        found, unit, sizes = torch.unique_consecutive(numbers, return_inverse=True, return_counts=True)
        if len(found) != len(found.unique()):
            raise ValueError("rows of a group are not beside each other")
        return cls(unit, sizes)

    @property
    def most(self) -> int:
        """Rows of the largest unit."""
        return int(self.sizes.max())

    def mean(self, losses: Tensor) -> Tensor:
        """Return a scalar whose gradient is the sum over units of the mean over a unit's losses [B]."""
        if losses.shape != self.unit.shape:
            raise InputError(f"the loss gave {tuple(losses.shape)} for {len(self.unit)} rows; give one value a row")
        return (losses.float() / self.sizes[self.unit]).sum()

    def total(self, rows: Tensor) -> Tensor:
        """Return sums float32 [G,...] over each unit's rows [B,...]."""
        if len(rows) == len(self.sizes):
            return rows.float()
        sums = torch.zeros((len(self.sizes), *rows.shape[1:]), device=rows.device)
        return sums.index_add_(0, self.unit, rows.float())

    def apart(self, rows: Tensor) -> Tensor:
        """Return rows [B,T,...] as [G,mT,...], m the largest unit's rows; what is missing is 0."""
        count, most = len(self.sizes), self.most
        if count * most == len(rows):
            return rows.reshape(count, most * rows.shape[1], *rows.shape[2:])
        place = torch.arange(len(rows), device=rows.device) - (self.sizes.cumsum(0) - self.sizes)[self.unit]
        wide = rows.new_zeros(count, most, *rows.shape[1:])
        wide[self.unit, place] = rows
        return wide.flatten(1, 2)


def coefficients(norms: Tensor, clip: float) -> Tensor:
    """Return min(1, clip / norm) [G], short of it by a millionth: rounding in the sum must not carry a unit over the
    bound.
    """
    return (clip * (1 - 1e-6) / norms.clamp_min(1e-30)).clamp(max=1.0)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return weights that require gradients, each once, by name."""
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


class Engine(Protocol):
    """How gradients of units are taken."""

    def clipped(self, loss: Loss, groups: Groups, clip: float) -> tuple[Tensor, list[Tensor]]:
        """Return norms float32 [G] before clipping; sums of what is left after it, one a trainable weight."""
        ...

    def apart(self, loss: Loss, groups: Groups) -> list[Tensor]:
        """Return gradients float32 [G,...], one a trainable weight."""
        ...

    def close(self) -> None:
        """Leave the network as it was."""
        ...


def check_rows(found: int, groups: Groups) -> None:
    """Raise InputError for a layer that did not see one row a row: its gradients belong to no unit."""
    if found != len(groups.unit):
        raise InputError(
            f"a trainable layer saw {found} rows where the batch has {len(groups.unit)}: what it learns cannot be told "
            "apart by unit; freeze it, or train LoRA layers only"
        )
