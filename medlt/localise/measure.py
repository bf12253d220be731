"""How well a stage finds a finding: measured on images whose regions are given, and what follows from it.

The measure is the pixel AUROC, the probability that a covered cell has a larger value than an uncovered one, averaged
over images, with an interval over patients. A stage is never measured by the maps that it made itself.

What a map's mass is worth follows from the same images. Take the cells of a map in falling order until they hold the
share u of its mass: L(u) is the share of the given region that they hold, the mean over patients. The calibrated map S'
gives each cell the L of its own stretch of u. So the sum of S' over any set of cells is the share of the finding that
is expected there, and it is the area of the set if the map knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.given import unknown
from medlt.localise.prior import PositionPrior
from medlt.localise.trust import GIVEN, Trust
from medlt.metrics.localisation import mean_interval, measures
from medlt.types import Localise

FEWEST = 5
"""Fewest patients with a given region that make a measurement. With fewer, the localisation is unmeasured."""


GRID = np.linspace(0.0, 1.0, 401)
"""The shares u at which L is kept."""
FLOOR = 0.05
"""Share of the mass that is spread over all cells, so that cells without evidence have a stretch of u of their own."""


@dataclass(frozen=True)
class Quality:
    """Pixel AUROC of a stage for a finding, with its 95 % interval over patients; patient -> L on GRID."""

    auroc: float
    low: float
    high: float
    curves: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def patients(self) -> int:
        """Return the number of patients whose regions measured this."""
        return len(self.curves)

    @property
    def uninformative(self) -> bool:
        """Return whether the interval reaches down to chance."""
        return not self.low > 0.5

    def curve(self, patient: str | None = None) -> np.ndarray:
        """Return L on GRID, without the region of this patient."""
        return np.asarray(np.mean([one for owner, one in self.curves.items() if owner != patient], axis=0))

    def calibrated(self, cells: np.ndarray, patient: str | None = None) -> np.ndarray:
        """Return S' of a map [h,w], float64 with sum 1; cells of one value get equal parts."""
        group, count, stop = _falling(cells)
        lesion = np.interp(stop, GRID, self.curve(patient))
        return np.asarray((np.diff(lesion, prepend=0.0) / count)[group].reshape(cells.shape))


def _falling(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the group of each cell of a map, from the largest value down, and of each group its size and last u."""
    flat = cells.ravel().astype(np.float64)
    values, group, count = np.unique(-flat, return_inverse=True, return_counts=True)
    mass = (1 - FLOOR) * -values * count / max(flat.sum(), 1e-12) + FLOOR * count / len(flat)
    return group, count, np.cumsum(mass) / mass.sum()


def lesion_curve(cells: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return L on GRID of one map [h,w] against the covered shares [h,w]."""
    group, _, stop = _falling(cells)
    lesion = np.cumsum(np.bincount(group, weights=cover.ravel())) / cover.sum()
    return np.asarray(np.interp(GRID, np.concatenate([[0.0], stop]), np.concatenate([[0.0], lesion])))


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
    truth = regions.masks(known, finding, (maps.shape[1], maps.shape[2]))
    values, owners = measures(maps.numpy(), truth.numpy())["auroc"], [patients[uid] for uid in known]
    usable = np.flatnonzero(~np.isnan(values))
    curves: dict[str, list[np.ndarray]] = {}
    for i in usable:
        curves.setdefault(owners[i], []).append(lesion_curve(maps[i].numpy(), truth[i].numpy()))
    if len(curves) < FEWEST:
        return None
    value, seen = mean_interval(values[usable], [owners[i] for i in usable], n_bootstrap, rng)
    mean = {owner: np.mean(own, axis=0) for owner, own in curves.items()}
    return Quality(value, float(seen.low), float(seen.high), mean)


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
    """What a method needs to know about places: the maps, the given regions, and how good the maps are.

    patients: uid -> patient, so that no region of an image's own patient calibrates its map; prior: the usual place
    alone, for comparison.
    """

    trust: Trust
    regions: Regions = field(default_factory=Regions)
    measured: Measured = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    prior: PositionPrior | None = None

    def is_measured(self, stages: Sequence[str], findings: Sequence[str]) -> np.ndarray:
        """Return whether a map of this stage and finding is given or was measured, bool [B]."""
        return np.array([s in GIVEN or (s, f) in self.measured for s, f in zip(stages, findings, strict=True)], bool)

    def expected(self, uids: Sequence[str], findings: Sequence[str]) -> Tensor:
        """Return the share of each finding that is expected in each cell, float64 [B,h,w].

        A given region is scaled to sum 1, the map of a measured stage is S', without the region of the image's own
        patient. NaN: the map is at chance, or was never measured.
        """
        located = self.trust.locate(uids, findings)
        rows = zip(located.maps, located.stages, uids, findings, strict=True)
        return torch.stack([self._expected(*row) for row in rows]) if uids else located.maps.double()

    def _expected(self, cells: Tensor, stage: str, uid: str, finding: str) -> Tensor:
        known = self.measured.get((stage, finding))
        if stage in GIVEN:
            return cells.double() / cells.double().sum()
        if known is None or known.uninformative:
            return torch.full_like(cells, torch.nan, dtype=torch.float64)
        return torch.from_numpy(known.calibrated(cells.numpy(), self.patients.get(uid)))

    def truth(self, uids: Sequence[str], findings: Sequence[str]) -> Tensor:
        """Return the given region of each image and finding, [B,h,w] of covered shares; NaN where none is given."""
        covered = unknown(uids, self.trust.size)
        for finding in dict.fromkeys(findings):
            at = [i for i, one in enumerate(findings) if one == finding]
            covered[at] = self.regions.masks([uids[i] for i in at], finding, self.trust.size)
        return covered
