"""Protocols of private training: the loss of single rows, and the function that trains with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Generator, Tensor, nn

from medlt.training.runtime import Runtime
from medlt.training.settings import Training


class RowLoss(Protocol):
    """The loss of single rows of a data set, for private training. The loss of a row depends on no other row."""

    def __call__(self, network: nn.Module, rows: np.ndarray, rng: Generator, /) -> Tensor:
        """Return the losses float32 [B], with their graph, of rows int64 [B].

        A row may occur several times. All random numbers come from `rng`.
        """
        ...


class PrivateFit(Protocol):
    """Training under differential privacy, in place of `medlt.training.loop.fit` (see `medlt.privacy.dpsgd`)."""

    @property
    def digest(self) -> str:
        """Digest of the mechanism (noise, clipping, privacy unit, ...), part of the key of every result."""
        ...

    def __call__(
        self,
        network: nn.Module,
        loss: RowLoss,
        units: Sequence[str],
        *,
        training: Training,
        runtime: Runtime,
        folder: Path,
        key: str,
        name: str,
        evaluate: Callable[[nn.Module], float] | None = None,
        picture: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        """Train, in place, the weights of `network` that require gradients, and give it its averaged weights.

        units: the privacy unit of each row, its patient id or its own uid; training: its batch size is the expected
        number of units per step; key: names network and data; name: the stage, as in the ledger. The function writes
        `folder`/mechanism.json for the ledger. A stopped training continues when called again. Raises InputError if
        the network cannot be trained privately, or if the budget is spent.
        """
        ...

    def account(self, mechanism: Path) -> None:
        """Add the mechanism.json of a finished training to the run's ledger.

        Called for every artifact, whether it was trained now or read from the store.
        """
        ...
