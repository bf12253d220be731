"""The common part of most checks: one value per image, compared with one limit."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from medlt.types import Batch, CheckResult


class Limited(Protocol):
    """A check of one limit. An image passes when its value is at least (or at most) the limit; NaN never passes."""

    name: ClassVar[str]
    passes_above: ClassVar[bool]

    @property
    def limit(self) -> float: ...


def check_limit(check: Limited, batch: Batch, values: Tensor, reason: str) -> list[CheckResult]:
    """Return one CheckResult per image, from values [B] in the order of the batch; a failed image has the `reason`."""
    out = []
    for uid, value in zip(batch.rows.index, values.double().tolist(), strict=True):
        passed = value >= check.limit if check.passes_above else value <= check.limit
        out.append(CheckResult(check.name, str(uid), value, check.limit, passed, "" if passed else reason))
    return out
