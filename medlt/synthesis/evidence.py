"""How much of each finding a fused image takes from its parents: what its labels are made of (`labels`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medlt.localise.measure import Localisation
from medlt.localise.trust import NOWHERE

BY_MASS = ("cam_mass", "lesion_carried", "measured")
"""Rules that use masses."""


@dataclass(frozen=True)
class Evidence:
    """Masses of findings on a set of pixels.

    mass: E or L of `labels`, [...]; unmeasured: whether nobody measured the map, bool [...].
    """

    mass: np.ndarray
    unmeasured: np.ndarray


def carried(where: Localisation, uids: Sequence[str], findings: Sequence[str], pixels: Tensor) -> np.ndarray:
    """Return the share of each given region that lies on `pixels`, bool [B,h,w]; float64 [B], NaN without a region."""
    covered = where.truth(uids, findings).double()
    share = (covered * pixels.cpu()).sum((1, 2)) / covered.sum((1, 2))
    return np.asarray(share.clamp(0.0, 1.0))


def evidence(where: Localisation, rule: str, uids: Sequence[str], findings: Sequence[str], pixels: Tensor) -> Evidence:
    """Return the evidence of one finding of each image on `pixels`, bool [B,h,w], for a rule of BY_MASS; both [B]."""
    if rule == "lesion_carried":
        return Evidence(carried(where, uids, findings, pixels), np.zeros(len(uids), bool))
    mass = (where.expected(uids, findings) * pixels.cpu()).sum((1, 2)).clamp(0.0, 1.0)
    return Evidence(np.asarray(mass), ~where.is_measured(where.trust.locate(uids, findings).stages, findings))


def evidence_table(
    where: Localisation, rule: str, uids: Sequence[str], y: np.ndarray, findings: Sequence[str], skip: int | None,
    pixels: Tensor,
) -> Evidence:  # fmt: skip
    """Return the evidence of every positive finding of images, both [B,K]; NaN and False for the others.

    y: labels [B,K]; skip: the column of the no-finding label, which has no place.
    """
    mass, unmeasured = np.full(y.shape, np.nan), np.zeros(y.shape, bool)
    positive = y == 1
    if skip is not None:
        positive[:, skip] = False
    row, column = np.nonzero(positive)
    if rule in BY_MASS and len(row):
        names = [findings[k] for k in column.tolist()]
        located = evidence(
            where, rule, [uids[i] for i in row.tolist()], names, pixels[torch.from_numpy(row).to(pixels.device)]
        )
        mass[row, column], unmeasured[row, column] = located.mass, located.unmeasured
    return Evidence(mass, unmeasured)


def reason(rule: str, stage: str, mass: float, unmeasured: bool) -> str:
    """Return why a rule of BY_MASS knows nothing about a finding, "" if it does."""
    if rule not in BY_MASS or not np.isnan(mass):
        return ""
    if rule == "lesion_carried":
        return "no mask or box is given"
    if stage == NOWHERE:
        return "no stage of localisation knows the finding"
    return f"the map of stage {stage} is {'not measured' if unmeasured else 'at chance'}"
