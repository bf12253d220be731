"""Is the image labelled as what it was made for? Soft label rules may take the finding away again.

An image planned to show a rare finding, whose mask left that evidence behind, says 0 or "unknown" for it. It may
be a fine radiograph; it does not fill the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from medlt.checks.limit import held
from medlt.types import Batch, Finding, InputError


@dataclass(frozen=True)
class Asserted:
    """Value: the image's own label for its row's `finding`. Unknown (NaN) never passes."""

    limit: float = 0.8
    name: ClassVar[str] = "asserted"
    passes_above: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> list[Finding]:
        """One Finding an image; batch.rows needs the column `finding`. Raises InputError without it."""
        if "finding" not in batch.rows:
            raise InputError("plan rows lack 'finding', which the check of the asserted label needs")
        own = zip(batch.rows.index, batch.rows["finding"], strict=True)
        values = torch.tensor([batch.labels.at[uid, name] for uid, name in own], dtype=torch.float64)
        return held(self, batch, values, "too little of the evidence for its finding was carried over to call it that")
