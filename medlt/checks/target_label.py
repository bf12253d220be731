"""Check whether the label of an image states its target finding. Soft label rules may remove the finding.

An image planned to show a rare finding may have a mask that leaves that evidence out; its label is then 0 or unknown.
It may be a good radiograph, but it does not fill the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from medlt.checks.limit import check_limit
from medlt.types import Batch, CheckResult, InputError


@dataclass(frozen=True)
class TargetLabelCheck:
    """Value: the image's own label for its row's `finding`. Unknown (NaN) never passes."""

    limit: float = 0.8
    name: ClassVar[str] = "target_label"
    passes_above: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image; batch.rows needs the column `finding`. Raises InputError without it."""
        if "finding" not in batch.rows:
            raise InputError("plan rows lack the column 'finding', which the target-label check needs")
        own = zip(batch.rows.index, batch.rows["finding"], strict=True)
        values = torch.tensor([batch.labels.at[uid, name] for uid, name in own], dtype=torch.float64)
        return check_limit(
            self, batch, values, "the image received too little evidence of its target finding for a positive label"
        )
