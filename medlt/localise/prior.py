"""Where a finding usually is: the mean place of the given masks and boxes of other patients.

The place is that in the mean radiograph (`medlt.localise.register`), or in the square image where no poses are given.
For one image, the cases of its own patient are left out, so a prior never contains the answer that it is compared with.
A patient with several cases counts once.

Sides: a finding whose cases lie on one side more often than a coin would place them (binomial test, `ONE_SIDED`) keeps
its sides, such as an enlarged heart. Every other prior is the mean of itself and its mirror image, because a few cases
say little about which side is usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.given import unknown
from medlt.localise.register import to_images, to_mean
from medlt.types import Localise

LEAST = 5
"""Fewest other patients with a case: the mean place of fewer says little."""
ONE_SIDED = 0.05
BLUR = 1 / 16
"""Standard deviation of the blur, as a share of the side."""
FRAME = (64, 64)
"""The grid of the mean radiograph. A case that is moved on the grid of a latent would be blurred by up to a cell."""


@dataclass(frozen=True)
class PositionPrior:
    """Mean place of the cases of other patients, [B,h,w] in [0,1] with maximum 1.

    regions: the cases; uids: those that may be used, such as train rows and images outside the collection; patients:
    uid -> patient, where known; an image of no known patient is a patient of its own; poses: uid -> pose [4], None for
    places in the square image. An image without a pose has that of the mean radiograph. With fewer than LEAST other
    patients it does not know.
    """

    regions: Regions
    uids: frozenset[str]
    patients: Mapping[str, str]
    size: tuple[int, int]
    poses: Mapping[str, Tensor] | None = None
    _cases: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _made: dict[tuple[str, str], np.ndarray | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        maps = unknown(uids, self.size)
        priors = [self._without(self.patients.get(uid, uid), finding) for uid in uids]
        at = [i for i, prior in enumerate(priors) if prior is not None]
        if at:
            known = torch.from_numpy(np.stack([prior for prior in priors if prior is not None]))
            maps[at] = known if self.poses is None else self._placed(known, [uids[i] for i in at])
        return maps

    def cases(self, finding: str) -> dict[str, np.ndarray]:
        """Return patient -> mean place of the patient's cases by name, float64 on `size`, or on FRAME with poses."""
        if finding not in self._cases:
            uids = sorted(set(self.regions.known(finding)) & self.uids)
            masks = self.regions.masks(uids, finding, self.size if self.poses is None else FRAME)
            covered = (masks if self.poses is None else to_mean(masks, self._poses(uids))).double().numpy()
            of: dict[str, list[np.ndarray]] = {}
            for uid, cover in zip(uids, covered, strict=True):
                of.setdefault(self.patients.get(uid, uid), []).append(cover)
            self._cases[finding] = {name: np.mean(of[name], axis=0) for name in sorted(of)}
        return self._cases[finding]

    def symmetric(self, uid: str, finding: str) -> bool:
        """Return whether the cases of other patients show that the finding has no side; False for too few."""
        own = self.patients.get(uid, uid)
        others = [place for name, place in self.cases(finding).items() if name != own]
        return len(others) >= LEAST and not one_sided(np.stack(others))

    def _placed(self, priors: Tensor, uids: Sequence[str]) -> Tensor:
        """Return priors [B, *FRAME] where they are in the images, [B, *size] with maximum 1."""
        placed = to_images(priors, self._poses(uids), self.size)
        return placed / placed.amax((1, 2), keepdim=True).clamp_min(1e-12)

    def _poses(self, uids: Sequence[str]) -> Tensor:
        """Return the poses of images, [B,4]."""
        poses = {} if self.poses is None else self.poses
        return torch.stack([poses.get(uid, torch.zeros(4)) for uid in uids]) if uids else torch.zeros(0, 4)

    def _without(self, patient: str, finding: str) -> np.ndarray | None:
        """Return the prior of everybody but this patient."""
        cases = self.cases(finding)
        key = (patient if patient in cases else "", finding)
        if key not in self._made:
            others = [place for name, place in cases.items() if name != patient]
            self._made[key] = usual_place(np.stack(others)) if len(others) >= LEAST else None
        return self._made[key]


def usual_place(places: np.ndarray) -> np.ndarray:
    """Return the blurred mean of places [N,h,w], float32 [h,w] with maximum 1; mirrored unless it is one-sided."""
    mean = places.mean(0)
    if not one_sided(places):
        mean = (mean + mean[:, ::-1]) / 2
    blurred = gaussian_filter(mean, [side * BLUR for side in mean.shape], mode="nearest")
    return np.asarray(blurred / max(float(blurred.max()), 1e-12), np.float32)


def one_sided(places: np.ndarray) -> bool:
    """Return whether places [N,h,w] lie mostly in the left or in the right half; those in the middle are left out."""
    half = places.shape[-1] // 2
    left, right = (part.sum((1, 2)) for part in (places[..., :half], places[..., -half:]))
    unequal = int((left != right).sum())
    return unequal > 0 and bool(binomtest(int((left > right).sum()), unequal).pvalue < ONE_SIDED)


@dataclass(frozen=True)
class AtUsualPlace:
    """Map times prior: (m + MAP)(p + PRIOR), without its least possible value, scaled to a maximum of 1.

    The small numbers keep a place that only one of the two names. It knows where both do.
    """

    inner: Localise
    prior: Localise

    def __call__(self, uids: Sequence[str], finding: str) -> Tensor:
        usual = self.prior(uids, finding)
        at = (~usual.isnan().flatten(1).any(1)).nonzero()[:, 0].tolist()
        if at:
            usual[at] = times(self.inner([uids[i] for i in at], finding), usual[at])
        return usual


MAP, PRIOR = 0.05, 0.02


def times(maps: Tensor, prior: Tensor) -> Tensor:
    """Return the product of maps and priors [B,h,w], scaled to a maximum of 1 (see `AtUsualPlace`)."""
    product = ((maps + MAP) * (prior + PRIOR) - MAP * PRIOR).clamp_min(0.0)
    high = product.amax((1, 2), keepdim=True)
    return product / torch.where(high > 0, high, 1.0)
