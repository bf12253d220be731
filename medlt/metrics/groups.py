"""Head, medium and tail: findings grouped by how many positives the train split has.

Cut-offs are those of the long-tailed radiograph benchmarks (Holste et al. 2022, arXiv 2208.13365): more than 1000
positives is head, fewer than 100 is tail. A collection too small to have a head by that rule is cut into thirds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

GROUPS = ("head", "medium", "tail")


@dataclass(frozen=True)
class Grouping:
    """Groups of findings: `of` maps each finding to head, medium or tail; `rule` is the rule as text for tables."""

    of: Mapping[str, str]
    rule: str

    def members(self, group: str) -> tuple[str, ...]:
        """Return the findings of one group, in the order given."""
        return tuple(finding for finding, name in self.of.items() if name == group)


def _cut(positives: Mapping[str, int], above: float, below: float) -> dict[str, str]:
    """Return the group of each finding: head strictly above `above`, tail strictly below `below`."""
    return {f: "head" if n > above else "tail" if n < below else "medium" for f, n in positives.items()}


def group(positives: Mapping[str, int], above: int = 1000, below: int = 100) -> Grouping:
    """Group findings by their train positives.

    positives: finding -> number of positive train rows. If no finding has more than `above` of them, the set is small
    and the cuts are the terciles of the counts. Equal counts always share a group.
    """
    positives = {finding: int(n) for finding, n in positives.items()}
    if any(n > above for n in positives.values()):
        return Grouping(_cut(positives, above, below), f"head > {above}, tail < {below} train positives")
    if not positives:
        return Grouping({}, "no findings")
    low, high = np.quantile(list(positives.values()), [1 / 3, 2 / 3], method="inverted_cdf")
    return Grouping(
        _cut(positives, high, low + 1), f"thirds: head > {high:.0f}, tail <= {low:.0f} train positives (small set)"
    )
