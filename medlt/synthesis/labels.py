"""What a fused image may be called: three rules for its label vector.

Notation: i the tail parent, j the head parent, omega the pixels taken from i, S the class activation map of a finding
made to sum to 1, mass the sum of S over a set of pixels. Labels are 1, 0 or NaN (unknown), [B,K].

| rule | y_c |
|---|---|
| tail | 1 where i has c; 0 where both parents are known not to; unknown elsewhere |
| union | max(y_i, y_j), as published: keeps a head finding although its pixels were the ones left out |
| cam_mass | max(y_i mass_omega S_i, y_j mass_rest S_j); a value inside (0.2, 0.8) becomes unknown |

Under every rule the no-finding label is 0: the image is made from a parent with a tail finding.
Values are in [0,1] or NaN, always.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medlt.types import InputError

UNSURE = (0.2, 0.8)


def mass(cam: Tensor, pixels: Tensor) -> np.ndarray:
    """Share of each map's sum that lies on `pixels`, float64 [B], of maps [B,h,w] >= 0 and bool [B,h,w].

    A map that is 0 everywhere says nothing about where: every pixel then counts alike.
    """
    weight = cam.double()
    weight = torch.where(weight.sum((1, 2), keepdim=True) > 0, weight, 1.0)
    share = (weight * pixels).sum((1, 2)) / weight.sum((1, 2))
    return np.asarray(share.clamp(0.0, 1.0).cpu())


def _larger(a: np.ndarray, b: np.ndarray, sure: float) -> np.ndarray:
    """max(a, b) where both are known; where one is not, the other if it reaches `sure`, else NaN."""
    known = np.fmax(a, b)
    return np.where(np.isnan(a) | np.isnan(b), np.where(known >= sure, known, np.nan), known)


def tail(y_i: np.ndarray, y_j: np.ndarray, mass_i: np.ndarray, mass_j: np.ndarray) -> np.ndarray:
    """The tail parent's findings, no one else's."""
    return np.where(y_i == 1, 1.0, np.where((y_i == 0) & (y_j == 0), 0.0, np.nan))


def union(y_i: np.ndarray, y_j: np.ndarray, mass_i: np.ndarray, mass_j: np.ndarray) -> np.ndarray:
    """Both parents' findings (the reference, for comparison)."""
    return _larger(y_i, y_j, sure=1.0)


def cam_mass(y_i: np.ndarray, y_j: np.ndarray, mass_i: np.ndarray, mass_j: np.ndarray) -> np.ndarray:
    """As much of a finding as of its evidence was carried over; unknown where that is neither little nor most."""
    low, high = UNSURE
    value = _larger(y_i * mass_i, y_j * mass_j, sure=high)
    return np.where((value > low) & (value < high), np.nan, value)


RULES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "tail": tail,
    "union": union,
    "cam_mass": cam_mass,
}


def fused_labels(
    rule: str,
    y_i: np.ndarray,
    y_j: np.ndarray,
    mass_i: np.ndarray,
    mass_j: np.ndarray,
    no_finding: int | None = None,
) -> np.ndarray:
    """float32 [B,K] by `rule` from the parents' labels and the masses of their findings, all [B,K].

    mass_i is mass_omega S_i, mass_j is mass_rest S_j; both matter only where the parent is positive. `no_finding` is
    the column of that label. Raises InputError for an unknown rule.
    """
    if rule not in RULES:
        raise InputError(f"labels: {rule!r} is not a rule; choose one of {', '.join(RULES)}")
    y = np.array(RULES[rule](y_i, y_j, mass_i, mass_j), dtype=np.float32)
    if no_finding is not None:
        y[:, no_finding] = 0.0
    return y
