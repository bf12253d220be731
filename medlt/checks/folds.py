"""Make patient folds with evenly distributed findings (`medlt.data.splits`), and verifiers trained without one each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.data.splits import stratify
from medlt.rng import seed_of
from medlt.rows import Rows
from medlt.types import Batch, InputError

Verifier: TypeAlias = Callable[[Rows], Tensor]
"""Images [B,1,H,W] -> probabilities [B,K]."""


def by_fold(batch: Batch) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """Yield (k, row numbers, images) of every fold k among a batch's rows, which need the column `fold`."""
    fold = batch.rows["fold"].to_numpy()
    for k in np.unique(fold):
        rows = np.flatnonzero(fold == k)
        yield int(k), rows, batch.images[torch.from_numpy(rows)]


def folds(patients: pd.Series, labels: pd.DataFrame, k: int, seed: int) -> pd.Series:
    """Return the fold 0..k-1 of every uid. patients: uid -> patient_id; labels: same index, one 0/1/NaN column a
    finding.

    Raises InputError for fewer patients than folds.
    """
    if (people := patients.nunique()) < k:
        raise InputError(f"{people} patients are too few for {k} folds; lower checks.folds or give more patients")
    return stratify(patients, labels, [1 / k] * k, seed, "folds").rename("fold")


def private_folds(patients: pd.Series, labels: pd.DataFrame, k: int, seed: int) -> pd.Series:
    """Return the fold 0..k-1 of every uid, which depends on its own patient alone: the others keep theirs without them.

    The arguments are those of `folds`; labels are not read.
    """
    return patients.map(lambda patient: seed_of(seed, "private folds", patient) % k).astype(int).rename("fold")


@dataclass(frozen=True)
class CrossFitClassifiers:
    """Verifiers by fold: verifiers[k] was trained without the rows of fold k.

    `held_out`: uid x finding, the probabilities of each row by the verifier of its own fold.
    """

    verifiers: tuple[Verifier, ...]
    fold: pd.Series
    held_out: pd.DataFrame

    @property
    def seen(self) -> dict[int, set[str]]:
        """Return the uids that each verifier was trained on."""
        return {int(k): set(self.fold.index[self.fold != k]) for k in self.fold.unique()}


def cross_fit(
    fold: pd.Series,
    images: Callable[[Sequence[str]], Rows],
    train: Callable[[Sequence[str], int], Verifier],
    findings: Sequence[str],
) -> CrossFitClassifiers:
    """Train one verifier per fold on the rows of the other folds, and apply it to its own fold.

    fold: uid -> 0..k-1; images(uids) -> [n,1,H,W]; train(uids, k) -> verifier k, trained on `uids` only.
    """
    verifiers, parts = [], []
    for k in range(int(fold.max()) + 1):
        verifier = train(list(fold.index[fold != k]), k)
        inside = list(fold.index[fold == k])
        scores = verifier(images(inside)).cpu().numpy()
        parts.append(pd.DataFrame(scores, index=pd.Index(inside, name="uid"), columns=list(findings)))
        verifiers.append(verifier)
    return CrossFitClassifiers(tuple(verifiers), fold, pd.concat(parts).loc[fold.index])
