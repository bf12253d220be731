"""What most checks share: one value an image, held against one limit."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from medlt.types import Batch, Finding


class Limited(Protocol):
    """A check of one limit. An image passes when its value is at least (else at most) that; NaN never passes."""

    name: ClassVar[str]
    passes_above: ClassVar[bool]

    @property
    def limit(self) -> float: ...


def held(check: Limited, batch: Batch, values: Tensor, reason: str) -> list[Finding]:
    """One Finding an image, from values [B] in the order of the batch; `reason` is said of those that fail."""
    out = []
    for uid, value in zip(batch.rows.index, values.double().tolist(), strict=True):
        passed = value >= check.limit if check.passes_above else value <= check.limit
        out.append(Finding(check.name, str(uid), value, check.limit, passed, "" if passed else reason))
    return out
