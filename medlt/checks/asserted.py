"""Is the image labelled as what it was made for? Soft label rules may take the finding away again.

An image planned to show a rare finding, whose mask left that evidence behind, says 0 or "unknown" for it. It may
be a fine radiograph; it does not fill the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
        names = zip(batch.rows.index, batch.rows["finding"], strict=True)
        return [self._finding(str(uid), name, float(batch.labels.at[uid, name])) for uid, name in names]

    def _finding(self, uid: str, name: str, value: float) -> Finding:
        passed = value >= self.limit
        reason = "" if passed else f"too little of the evidence for {name} was carried over to call the image that"
        return Finding(self.name, uid, value, self.limit, passed, reason)
