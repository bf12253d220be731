"""Rows of a batch by privacy unit, and the clipping of the gradients of units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medlt.types import InputError

Loss = Callable[[], Tensor]
"""Function without arguments that returns the losses [B] of the rows, with their graph."""


@dataclass(frozen=True)
class Groups:
    """The unit of each row: `unit` int64 [B], 0..G-1 without gaps and rising; `sizes` int64 [G]."""

    unit: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, groups: Any, device: torch.device) -> Groups:
        """Return the groups of any numbers [B], in which equal ones are adjacent.

        Raises ValueError if equal numbers are not adjacent.
        """
        numbers = torch.as_tensor(groups, dtype=torch.int64, device=device)
        distinct, unit, sizes = torch.unique_consecutive(numbers, return_inverse=True, return_counts=True)
        if len(distinct) != len(distinct.unique()):
            raise ValueError("the rows of a group are not adjacent")
        return cls(unit, sizes)

    @property
    def most(self) -> int:
        """Number of rows of the largest unit."""
        return int(self.sizes.max())

    def mean(self, losses: Tensor) -> Tensor:
        """Return the sum over units of the mean of the losses [B] of each unit, a scalar."""
        if losses.shape != self.unit.shape:
            raise InputError(
                f"the loss returned {tuple(losses.shape)} for {len(self.unit)} rows; return one value for each row"
            )
        return (losses.float() / self.sizes[self.unit]).sum()

    def total(self, rows: Tensor) -> Tensor:
        """Return the sums float32 [G,...] over the rows [B,...] of each unit."""
        if len(rows) == len(self.sizes):
            return rows.float()
        sums = torch.zeros((len(self.sizes), *rows.shape[1:]), device=rows.device)
        return sums.index_add_(0, self.unit, rows.float())

    def by_unit(self, rows: Tensor) -> Tensor:
        """Return rows [B,T,...] as [G,mT,...], where m is the number of rows of the largest unit; filled up with 0."""
        count, most = len(self.sizes), self.most
        if count * most == len(rows):
            return rows.reshape(count, most * rows.shape[1], *rows.shape[2:])
        place = torch.arange(len(rows), device=rows.device) - (self.sizes.cumsum(0) - self.sizes)[self.unit]
        wide = rows.new_zeros(count, most, *rows.shape[1:])
        wide[self.unit, place] = rows
        return wide.flatten(1, 2)


def coefficients(norms: Tensor, max_grad_norm: float) -> Tensor:
    """Return min(1, max_grad_norm / norm), [G].

    It is smaller by a millionth, so that rounding in the sum cannot carry a unit over the bound.
    """
    return (max_grad_norm * (1 - 1e-6) / norms.clamp_min(1e-30)).clamp(max=1.0)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that require gradients, each once, by name."""
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


class Engine(Protocol):
    """One way to compute the gradients of units."""

    def clipped(self, loss: Loss, groups: Groups, max_grad_norm: float) -> tuple[Tensor, list[Tensor]]:
        """Return norms float32 [G] before clipping, and the sums after clipping, one for each trainable weight."""
        ...

    def unit_gradients(self, loss: Loss, groups: Groups) -> list[Tensor]:
        """Return the gradients float32 [G,...] before clipping, one for each trainable weight."""
        ...

    def close(self) -> None:
        """Restore the network."""
        ...


def check_rows(seen: int, groups: Groups) -> None:
    """Raise InputError if a layer saw another number of rows than the batch has: its gradients have no unit."""
    if seen != len(groups.unit):
        raise InputError(
            f"a trainable layer saw {seen} rows, but the batch has {len(groups.unit)}: its gradients cannot be "
            "assigned to units; freeze it, or train LoRA layers only"
        )
