"""Rules for the label vector of a fused image.

Notation: i is the tail parent, j the head parent, omega the pixels taken from i, a their share of the image. S is the
map of a finding scaled to sum 1, mass the sum of S over a set of pixels. Labels are 1, 0 or NaN (unknown), [B,K].

| rule | y_c |
|---|---|
| tail | 1 if i has c; 0 if both parents are known not to have it; otherwise unknown |
| union | max(y_i, y_j), as published: keeps a head finding even if its pixels were left out |
| cam_mass | max(y_i E_i, y_j E_j); a value inside (0.2, 0.8) becomes unknown |
| lesion_carried | the same with L for E |
| measured | cam_mass; tail, if the map of a parent's finding was never measured |

E is the share of the finding that is expected on the pixels, from maps whose accuracy was measured on given regions
(`medlt.localise.measure`):

| map of c in the parent | E_i | E_j |
|---|---|---|
| a given mask or box | its share on omega | its share on the rest |
| measured, above chance | sum of S' over omega, S' the calibrated map | sum of S' over the rest |
| measured, at chance; never measured | NaN | NaN |

L is the share of the given mask or box, NaN without one. Every rule sets the no-finding label to 0, because the tail
parent has a finding. Values are in [0,1] or NaN.

Recomposition has hard labels alone (`recomposed_labels`). A parent's label and share bound what it gave: a finding that
it has gave its share, one that it may have gave at most that. A label is 1 if at least 0.8 of the finding must be there
from one of the parents, 0 if no more than 0.2 can be, otherwise unknown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medlt.types import InputError

UNSURE = (0.2, 0.8)


def cam_share(cam: Tensor, pixels: Tensor) -> np.ndarray:
    """Return the mass on `pixels`, float64 [B], of maps [B,h,w] >= 0 and bool [B,h,w].

    In a map that is 0 everywhere, every pixel has the same weight.
    """
    weight = cam.double()
    weight = torch.where(weight.sum((1, 2), keepdim=True) > 0, weight, 1.0)
    share = (weight * pixels).sum((1, 2)) / weight.sum((1, 2))
    return np.asarray(share.clamp(0.0, 1.0).cpu())


def _maximum(a: np.ndarray, b: np.ndarray, sure: float) -> np.ndarray:
    """Return max(a, b) if both are known; otherwise the known one if it reaches `sure`, else NaN."""
    known = np.fmax(a, b)
    return np.where(np.isnan(a) | np.isnan(b), np.where(known >= sure, known, np.nan), known)


def tail(y_i: np.ndarray, y_j: np.ndarray, mass_i: np.ndarray, mass_j: np.ndarray) -> np.ndarray:
    """Return the findings of the tail parent alone."""
    return np.where(y_i == 1, 1.0, np.where((y_i == 0) & (y_j == 0), 0.0, np.nan))


def union(y_i: np.ndarray, y_j: np.ndarray, mass_i: np.ndarray, mass_j: np.ndarray) -> np.ndarray:
    """Return the findings of both parents (the published rule)."""
    return _maximum(y_i, y_j, sure=1.0)


def _carried(y: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Return y times mass: 0 for a parent known not to have the finding, whatever the mass."""
    return np.where(y == 0, 0.0, y * mass)


def cam_mass(y_i: np.ndarray, y_j: np.ndarray, mass_i: np.ndarray, mass_j: np.ndarray) -> np.ndarray:
    """Return the share of a finding that was carried over, as E or L says; unknown if it is inside UNSURE."""
    low, high = UNSURE
    value = _maximum(_carried(y_i, mass_i), _carried(y_j, mass_j), sure=high)
    return np.where((value > low) & (value < high), np.nan, value)


def recomposed_labels(
    y_tail: np.ndarray, y_head: np.ndarray, taken: np.ndarray, left: np.ndarray, no_finding: int | None = None
) -> np.ndarray:
    """Return label vectors of 1, 0 and NaN, float32 [B,K].

    y_tail, y_head: labels of the parents; taken, left: shares of their findings in the image, NaN where unknown; all
    [B,K]. no_finding: column of the no-finding label, which becomes 0.
    """
    least, most = np.zeros(y_tail.shape), np.zeros(y_tail.shape)
    for y, share in ((y_tail, taken), (y_head, left)):
        least = np.maximum(least, np.where(y == 1, np.nan_to_num(share, nan=0.0), 0.0))
        most = np.maximum(most, np.where(y == 0, 0.0, np.nan_to_num(share, nan=1.0)))
    low, high = UNSURE
    labels = np.where(least >= high, 1.0, np.where(most <= low, 0.0, np.nan)).astype(np.float32)
    if no_finding is not None:
        labels[:, no_finding] = 0.0
    return labels


RULES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "tail": tail,
    "union": union,
    "cam_mass": cam_mass,
    "lesion_carried": cam_mass,
    "measured": cam_mass,
}


def fused_labels(
    rule: str,
    y_i: np.ndarray,
    y_j: np.ndarray,
    mass_i: np.ndarray,
    mass_j: np.ndarray,
    no_finding: int | None = None,
    unmeasured: np.ndarray | None = None,
) -> np.ndarray:
    """Return label vectors, float32 [B,K], from the parents' labels and the masses of their findings, all [B,K].

    mass_i is E_i (or L_i) and mass_j is E_j; each is used only where its parent is positive; no_finding: column of the
    no-finding label; unmeasured: bool [B,K], where rule "measured" falls back on "tail". Raises InputError for an
    unknown rule.
    """
    if rule not in RULES:
        raise InputError(f"labels: {rule!r} is not a rule; choose one of {', '.join(RULES)}")
    y = np.array(RULES[rule](y_i, y_j, mass_i, mass_j), dtype=np.float32)
    if rule == "measured" and unmeasured is not None:
        y = np.where(unmeasured, tail(y_i, y_j, mass_i, mass_j), y).astype(np.float32)
    if no_finding is not None:
        y[:, no_finding] = 0.0
    return y
