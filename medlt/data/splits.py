"""Assigns patients to parts with evenly distributed findings: the splits of a collection, and the folds of its checks.

Iterative stratification (Sechidis et al., ECML PKDD 2011): patients of the rarest finding first, each to the part that
lacks it most. A patient is never divided, and shares count patients. In addition, each part gets a positive patient of
each finding. A finding with fewer patients than parts is in the parts with the largest shares: one patient in train,
for without it nothing can be learnt; of two, the second in test, where a gain is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medlt.data.columns import SPLITS
from medlt.rng import numpy_generator

SHARES = (0.7, 0.1, 0.2)
"""Of the patients in train, val and test."""
REPAIRS = 500
"""Most patients that are moved to bring a finding into a part that lacks it."""


def stratify(
    patients: pd.Series, labels: pd.DataFrame, shares: Sequence[float], *key: object, given: pd.Series | None = None
) -> pd.Series:
    """Return the part 0..k-1 of every uid, for k shares that sum to 1; `key` seeds the ties.

    patients: uid -> patient id; labels: same uids, one column a finding, 0.5 or more is positive; given: patient id ->
    part, for patients that stay where they are. The result depends on the ids and labels, not on the order of rows.
    A part with a share of 0 stays empty.
    """
    owner = patients.astype(str)
    numbers = labels.reindex(patients.index).apply(pd.to_numeric, errors="coerce")
    held = (numbers >= 0.5).groupby(owner.to_numpy()).any()  # [patients,K], by patient id
    rng = numpy_generator(*key)
    held = held.iloc[rng.permutation(len(held))]
    part = np.full(len(held), -1) if given is None else given.reindex(held.index).fillna(-1).to_numpy(np.int64)
    state = _Parts(held.to_numpy(np.int64), np.asarray(shares, np.float64), part)
    state.assign()
    state.repair(rng)
    return pd.Series(state.part, held.index).loc[owner.to_numpy()].set_axis(patients.index)


def patient_split(
    patients: pd.Series, labels: pd.DataFrame, seed: int, shares: Sequence[float] = SHARES,
    given: pd.Series | None = None,
) -> pd.Series:  # fmt: skip
    """Return 'train', 'val' or 'test' for every uid, see `stratify`; given: patient id -> split."""
    numbers = None if given is None else given.map({name: number for number, name in enumerate(SPLITS)}).dropna()
    parts = stratify(patients, labels, shares, seed, "split", given=numbers)
    return parts.map(dict(enumerate(SPLITS))).astype("str").rename("split")


def complete_split(split: pd.Series, patients: pd.Series, labels: pd.DataFrame, seed: int) -> pd.Series:
    """Return the split of every uid, with blanks filled.

    A patient who has a split on another row keeps it. The other patients are distributed so that train, val and test
    approach 70/10/20 of all patients. Where test alone is given it is whole, and they go to train and val, 7:1.
    """
    blank = split.isna()
    owner = patients.astype(str)
    given = split[~blank].groupby(owner[~blank]).first()
    free = ~owner.isin(given.index)
    if set(given) == {"test"}:
        train, val, _ = SHARES
        drawn = patient_split(owner[free], labels[free], seed, (train / (train + val), val / (train + val), 0.0))
    else:
        drawn = patient_split(owner, labels, seed, given=given)[free]
    known = owner.map(given)
    known[free] = drawn
    return split.where(~blank, known)


@dataclass
class _Parts:
    """Findings of patients [P,K] as 0 and 1, shares [k], and the part of each patient [P], -1 if it has none yet."""

    held: np.ndarray
    shares: np.ndarray
    part: np.ndarray

    def __post_init__(self) -> None:
        inside = self.part[:, None] == np.arange(len(self.shares))  # [P,k]
        self.free = np.flatnonzero(self.part < 0)
        self.placed = inside.T.astype(np.int64) @ self.held  # [k,K]
        self.room = self.shares * len(self.part) - inside.sum(0)
        larger = (self.shares[:, None] >= self.shares[None, :]).sum(0)  # parts at least as large, itself included
        self.required = (larger[:, None] <= self.held.sum(0)[None, :]) & (self.shares > 0)[:, None]  # [k,K]

    def assign(self) -> None:
        """Give every free patient a part, the patients of the rarest finding first."""
        count = self.held.sum(0)
        wanted = self.shares[:, None] * count
        left = self.held[self.free].sum(0)
        rarity = np.where(self.held > 0, count, len(self.held) + 1).min(1, initial=len(self.held) + 1)
        for i in self.free[np.argsort(rarity[self.free], kind="stable")]:
            own = np.flatnonzero(self.held[i])
            absent = self.required[:, own] & (self.placed[:, own] == 0)
            due = (absent & (left[own] <= absent.sum(0))).sum(1)  # findings of which no other patient may be left
            rarest = own[np.argmin(count[own])] if len(own) else None
            lack = np.zeros(len(self.shares)) if rarest is None else wanted[:, rarest] - self.placed[:, rarest]
            self._place(int(i), int(np.lexsort((-self.room, -lack, -due))[0]))
            left[own] -= 1

    def repair(self, rng: np.random.Generator) -> None:
        """Move free patients until each required finding is in each part, or for at most REPAIRS moves."""
        free = self.part[self.free].copy()
        fewest = int(self._missing(self.placed).sum())
        for _ in range(REPAIRS):
            gaps = np.argwhere(self._missing(self.placed))
            if not len(gaps):
                break
            to, finding = gaps[rng.integers(len(gaps))]
            able = self.free[(self.held[self.free, finding] > 0) & (self.part[self.free] != to)]
            if not len(able):
                continue
            chosen = rng.choice(able) if rng.random() < 0.2 else self._best(able, to, rng)
            self._place(int(chosen), int(to))
            if (missing := int(self._missing(self.placed).sum())) < fewest:
                fewest, free = missing, self.part[self.free].copy()
        self.part[self.free] = free

    def _best(self, able: np.ndarray, to: int, rng: np.random.Generator) -> int:
        """Return the patient whose move to the part `to` leaves the fewest gaps; ties by chance."""
        own, parts = self.held[able], self.part[able]
        opened = ((self.placed[parts] == own) & (own > 0) & self.required[parts]).sum(1)
        closed = ((self.placed[to] == 0) & (own > 0) & self.required[to]).sum(1)
        return int(able[np.lexsort((rng.random(len(able)), opened - closed))[0]])

    def _missing(self, placed: np.ndarray) -> np.ndarray:
        missing: np.ndarray = self.required & (placed == 0)
        return missing

    def _place(self, patient: int, to: int) -> None:
        if (before := self.part[patient]) >= 0:
            self.placed[before] -= self.held[patient]
            self.room[before] += 1
        self.part[patient] = to
        self.placed[to] += self.held[patient]
        self.room[to] -= 1
