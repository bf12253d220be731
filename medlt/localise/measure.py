"""How well a stage finds a finding: measured on images whose regions are given, and what follows from it.

The measure is the pixel AUROC, the probability that a covered cell has a larger value than an uncovered one, averaged
over images, with an interval over patients. A stage is never measured by the maps that it made itself.

Reliability r = 2 AUROC - 1 is 1 for a map that orders all cells right, and 0 for chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.given import unknown
from medlt.localise.trust import GIVEN, Trust
from medlt.metrics.localisation import mean_interval, measures
from medlt.types import Localise

FEWEST = 5
"""Fewest patients with a given region that make a measurement. With fewer, the localisation is unmeasured."""


@dataclass(frozen=True)
class Quality:
    """Pixel AUROC of a stage for a finding, with its 95 % interval over patients."""

    auroc: float
    low: float
    high: float
    patients: int

    @property
    def uninformative(self) -> bool:
        """Return whether the interval reaches down to chance."""
        return not self.low > 0.5

    @property
    def reliability(self) -> float:
        """Return r in (0,1]; NaN at chance."""
        return math.nan if self.uninformative else 2 * self.auroc - 1


Measured = Mapping[tuple[str, str], Quality]
"""(stage, finding) -> its quality; stages and findings that are unmeasured are left out."""


def quality(
    stage: Localise, regions: Regions, uids: Sequence[str], finding: str, patients: Mapping[str, str],
    rng: np.random.Generator, n_bootstrap: int = 1000,
) -> Quality | None:  # fmt: skip
    """Return the quality on those of `uids` whose region is given and where the stage knows; None for too few.

    patients: uid -> patient. Only the regions score: the stage must not read those of the same patient.
    """
    known = [uid for uid in regions.known(finding) if uid in set(uids)]
    maps = stage(known, finding) if known else None
    if maps is None:
        return None
    truth, knows = regions.masks(known, finding, (maps.shape[1], maps.shape[2])), ~maps.isnan().flatten(1).any(1)
    values = aurocs(maps[knows], truth[knows])
    owners = [patients[uid] for uid, one in zip(known, knows.tolist(), strict=True) if one]
    if len({owner for owner, value in zip(owners, values, strict=True) if not np.isnan(value)}) < FEWEST:
        return None
    value, seen = mean_interval(values, owners, n_bootstrap, rng)
    return Quality(value, seen.low, seen.high, len(set(owners)))


def aurocs(maps: Tensor, truth: Tensor) -> np.ndarray:
    """Return the pixel AUROC of each map [B,h,w] against the covered shares [B,h,w], float64 [B]; NaN: none."""
    return measures(maps.numpy(), truth.numpy())["auroc"]


def measure(
    stages: Mapping[str, Localise], regions: Regions, uids: Sequence[str], findings: Sequence[str],
    patients: Mapping[str, str], rng: Callable[[str, str], np.random.Generator],
) -> dict[tuple[str, str], Quality]:  # fmt: skip
    """Return the quality of every stage for every finding that can be measured; rng: (stage, finding) -> generator."""
    made = {
        (name, finding): quality(stage, regions, uids, finding, patients, rng(name, finding))
        for name, stage in stages.items()
        for finding in findings
    }
    return {key: one for key, one in made.items() if one is not None}


def best_stage(measured: Measured, names: Sequence[str], default: str) -> str:
    """Return the stage of largest mean AUROC over the findings in which all of `names` are measured.

    Ties go to the earlier name; without such a finding it is the default.
    """
    findings = sorted({finding for _, finding in measured if all((name, finding) in measured for name in names)})
    if not findings:
        return default
    return max(names, key=lambda name: float(np.mean([measured[name, finding].auroc for finding in findings])))


@dataclass(frozen=True)
class Localisation:
    """What a method needs to know about places: the maps, the given regions, and how good the maps are."""

    trust: Trust
    regions: Regions = field(default_factory=Regions)
    measured: Measured = field(default_factory=dict)

    def is_measured(self, stages: Sequence[str], findings: Sequence[str]) -> np.ndarray:
        """Return whether a map of this stage and finding is given or was measured, bool [B]."""
        return np.array([s in GIVEN or (s, f) in self.measured for s, f in zip(stages, findings, strict=True)], bool)

    def reliability(self, stages: Sequence[str], findings: Sequence[str]) -> np.ndarray:
        """Return r of each map, float64 [B]: 1 for a given one, NaN at chance and where it was not measured."""
        pairs = zip(stages, findings, strict=True)
        return np.array([1.0 if s in GIVEN else self._reliability(s, f) for s, f in pairs], np.float64)

    def truth(self, uids: Sequence[str], findings: Sequence[str]) -> Tensor:
        """Return the given region of each image and finding, [B,h,w] of covered shares; NaN where none is given."""
        covered = unknown(uids, self.trust.size)
        for finding in dict.fromkeys(findings):
            at = [i for i, one in enumerate(findings) if one == finding]
            covered[at] = self.regions.masks([uids[i] for i in at], finding, self.trust.size)
        return covered

    def _reliability(self, stage: str, finding: str) -> float:
        known = self.measured.get((stage, finding))
        return math.nan if known is None else known.reliability
