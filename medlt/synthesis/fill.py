"""Which label vectors to make images of, until every finding has as many as it shall: the fill rule of DiffuLT.

Published (arXiv 2403.05170) for one label an image: class c gets N_t - n_c images. Radiographs carry several findings,
so vectors are chosen among real ones, one at a time, and all findings of a vector count:

    findings in the order of their rarity; while one lacks images, among the rows that have it take the row
      1. with the fewest findings that were asked for and have enough by now   (no needless overshoot)
      2. that lent its labels least often so far                               (patients, not one patient)
      3. with the most findings that still lack images                         (nearest to all targets)
      4. first in a seeded order

The rarest goes first because its rows are the fewest to choose among, and bring the others along. Findings that were
not asked for, the common ones, are neither wanted nor avoided: they occur beside rare ones as often as in patients.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from medlt.rng import numpy_generator
from medlt.types import InputError


def fill(labels: pd.DataFrame, need: Mapping[str, int], seed: int) -> list[tuple[str, str]]:
    """(finding, uid) of one image after the other: what it is made for, and whose labels it gets.

    labels: uid x finding, 1 / 0 / NaN = unknown, real train rows; need: N_t - n_c of each finding to fill. Every
    finding is brought to its need; with one label a row that is exactly need[c] images of c. A longer need begins with
    the shorter one until a finding of it has enough. Raises InputError for a finding without column or positive row.
    """
    names = [name for name in labels.columns if name in need]
    if strange := sorted(set(need) - set(names)):
        raise InputError(f"fill: {strange[0]!r} is wanted but is not a finding of the table; correct the need")
    has = np.asarray(labels[names] == 1, dtype=np.int64)  # [N,F]
    left = np.array([max(0, need[name]) for name in names], dtype=np.int64)
    for name, count in zip(names, has.sum(0), strict=True):
        if not count and need[name] > 0:
            raise InputError(f"fill: {name} has no positive train row to be made from; leave it out of the need")
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
    """The row of `rows` [n] to take, by the rule of the module."""
    over, helped = has[rows] @ (left <= 0), has[rows] @ (left > 0)
    return int(rows[np.lexsort((order[rows], -helped, used[rows], over))[0]])


def _order(uids: pd.Index, seed: int) -> np.ndarray:
    """Place [N] of each uid in a seeded order, which does not depend on the order of the rows."""
    names = np.array(sorted(map(str, uids)))
    place = dict(
        zip(names[numpy_generator(seed, "fill").permutation(len(names))].tolist(), range(len(names)), strict=True)
    )
    return np.array([place[str(uid)] for uid in uids], dtype=np.int64)
