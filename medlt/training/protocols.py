"""What private training takes and is: the loss of each row by itself, and what stands in for the ordinary step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Generator, Tensor, nn

from medlt.training.runtime import Runtime
from medlt.training.settings import Training


class RowLoss(Protocol):
    """The loss of each row of a data set by itself, as private training needs it: a row's depends on no other row."""

    def __call__(self, network: nn.Module, rows: np.ndarray, draw: Generator, /) -> Tensor:
        """Losses float32 [B], with their graph, of rows int64 [B] (one may come several times); chance from `draw`."""
        ...


class PrivateFit(Protocol):
    """Training under differential privacy: what takes the place of the ordinary step (`medlt.privacy.dpsgd`)."""

    @property
    def digest(self) -> str:
        """Name the mechanism (noise, clip, unit, ...), for the key of what is trained by it."""
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
        """Train, in place, the weights of `network` that require gradients; it comes back with its averaged weights.

        units: whose row each is, one a row: the patient's id, or the row's own uid; training: with `batch` the expected
        number of units a step; `key` names network and data; `name` the stage, as the ledger names it. Writes
        `folder`/mechanism.json, what the ledger keeps of it. Stopped and called again, it continues. Raises InputError
        for a network that cannot be trained so, and for a budget that is spent.
        """
        ...

    def account(self, mechanism: Path) -> None:
        """Put a finished training's mechanism.json into the run's ledger; called for every artifact, made or found."""
        ...
