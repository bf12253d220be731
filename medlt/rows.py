"""Rows of images or latents that may stay on disk: they are read when they are indexed, like those of a tensor.

A collection of 377,110 images of 224 px takes 19 GB. Trainings and measurements use some rows at a time, so they accept
`StoredRows` in place of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IN_MEMORY = 2**29
"""Rows of up to this many bytes in all are kept in memory."""


@dataclass(frozen=True)
class StoredRows:
    """Rows of one shape, read by `read(numbers)`: int64 [n] -> [n, *row].

    names: a digest of each row that `read` knows; equal digests have equal rows. numbers: the rows that these are, in
    order. Index it with a slice, or with an array or a tensor of row numbers or of N booleans; the result is a tensor.
    """

    read: Callable[[np.ndarray], Tensor]
    names: Sequence[str]
    row: tuple[int, ...]
    dtype: torch.dtype
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at: slice | np.ndarray | Tensor) -> Tensor:
        return self.read(self.numbers[_as_index(at)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all rows, (N, *row)."""
        return (len(self), *self.row)

    @property
    def ndim(self) -> int:
        """Number of dimensions of all rows."""
        return len(self.shape)

    def digest_names(self) -> list[str]:
        """Return the digest of each of these rows."""
        return [self.names[number] for number in self.numbers]

    def subset(self, at: slice | np.ndarray | Tensor) -> StoredRows:
        """Return some of these rows, unread; `at` as for indexing."""
        return replace(self, numbers=self.numbers[_as_index(at)])

    def loaded(self, most: int = IN_MEMORY) -> StoredRows:
        """Return these rows in memory if they have at most `most` bytes, else unchanged."""
        if int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize > most:
            return self
        return StoredRows(
            InMemory(self[:]), self.digest_names(), self.row, self.dtype, np.arange(len(self), dtype=np.int64)
        )


@dataclass(frozen=True)
class InMemory:
    """Rows of a tensor [N, *row]."""

    rows: Tensor

    def __call__(self, numbers: np.ndarray) -> Tensor:
        import torch

        return self.rows[torch.from_numpy(numbers)]


Rows: TypeAlias = "Tensor | StoredRows"
"""Rows of a tensor, in memory or stored."""


def subset(rows: Rows, at: np.ndarray) -> Rows:
    """Return the rows with these numbers; stored rows stay unread."""
    return rows.subset(at) if isinstance(rows, StoredRows) else rows[at]


def chunks(rows: Rows, size: int) -> Iterator[Tensor]:
    """Yield the rows in order, up to `size` at a time; nothing if there is none."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _as_index(at: slice | np.ndarray | Tensor) -> slice | np.ndarray:
    return at if isinstance(at, slice) else np.asarray(at)
