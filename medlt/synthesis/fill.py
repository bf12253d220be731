"""The fill rule of DiffuLT: choose label vectors until every finding reaches its target.

The published rule (arXiv 2403.05170) is for one label an image: class c gets N_t - n_c images. Radiographs have several
findings, so label vectors are chosen among real ones, one at a time, and all findings of a vector count:

    findings in order of rarity; while one lacks images, take among the rows that have it the row
      1. with the fewest target findings that already have enough images      (no needless overshoot)
      2. whose label vector was used least often so far                       (many patients instead of one)
      3. with the most findings that still lack images                        (nearest to all targets)
      4. that comes first in a seeded order

The rarest finding goes first because it has the fewest rows to choose from, and these rows also count for other
findings. Findings without a target, the common ones, are neither preferred nor avoided: they occur beside rare findings
as often as they do in patients.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from medlt.rng import numpy_generator
from medlt.types import InputError


def fill_targets(labels: pd.DataFrame, targets: Mapping[str, int], seed: int) -> list[tuple[str, str]]:
    """Return (finding, uid) of each image in order: the finding it is made for, and the row of its label vector.

    labels: uid x finding of real train rows, 1 / 0 / NaN = unknown; targets: finding -> N_t - n_c. Every finding
    reaches its target; with one label a row there are exactly targets[c] images of c. A larger target begins with the
    images of a smaller one until one of its findings has enough. Raises InputError for a finding without a column or
    without a positive row.
    """
    names = [name for name in labels.columns if name in targets]
    if unknown := sorted(set(targets) - set(names)):
        raise InputError(f"fill rule: {unknown[0]!r} is not a finding of the table; remove it from the targets")
    has = np.asarray(labels[names] == 1, dtype=np.int64)  # [N,F]
    left = np.array([max(0, targets[name]) for name in names], dtype=np.int64)
    for name, count in zip(names, has.sum(0), strict=True):
        if not count and targets[name] > 0:
            raise InputError(f"fill rule: {name} has no positive train row; remove it from the targets")
    order, used = _order(labels.index, seed), np.zeros(len(has), dtype=np.int64)
    chosen = []
    for finding in np.argsort(has.sum(0), kind="stable"):
        rows = np.flatnonzero(has[:, finding])
        while left[finding] > 0:
            row = _best(rows, has, left, used, order)
            chosen.append((names[finding], str(labels.index[row])))
            left -= has[row]
            used[row] += 1
    return chosen


def _best(rows: np.ndarray, has: np.ndarray, left: np.ndarray, used: np.ndarray, order: np.ndarray) -> int:
    """Return the row of `rows` [n] that the rule takes."""
    over, helped = has[rows] @ (left <= 0), has[rows] @ (left > 0)
    return int(rows[np.lexsort((order[rows], -helped, used[rows], over))[0]])


def _order(uids: pd.Index, seed: int) -> np.ndarray:
    """Return the place [N] of each uid in a seeded order, which does not depend on the order of the rows."""
    names = np.array(sorted(map(str, uids)))
    shuffled = names[numpy_generator(seed, "fill").permutation(len(names))].tolist()
    place = {name: number for number, name in enumerate(shuffled)}
    return np.array([place[str(uid)] for uid in uids], dtype=np.int64)
