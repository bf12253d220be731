"""Make patient folds with evenly distributed findings, and verifiers trained without one fold each.

Folds follow iterative stratification (Sechidis et al. 2011): rarest finding first, each patient to the fold that lacks
it most. A patient is never divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.rng import numpy_generator
from medlt.types import Batch, InputError

Verifier: TypeAlias = Callable[[Tensor], Tensor]
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
    held = (labels.reindex(patients.index) == 1).groupby(patients.to_numpy()).any().astype(float)  # [patients,K]
    if len(held) < k:
        raise InputError(f"{len(held)} patients are too few for {k} folds; lower checks.folds or give more patients")
    held = held.iloc[numpy_generator(seed, "folds").permutation(len(held))]
    rarity = np.where(held.to_numpy() > 0, held.sum().to_numpy(), np.inf).min(1)
    order = np.argsort(rarity, kind="stable")
    fold = pd.Series(_stratify(held.to_numpy()[order], k), index=held.index[order])
    return pd.Series(fold.loc[patients.to_numpy()].to_numpy(), index=patients.index, name="fold")


def _stratify(held: np.ndarray, k: int) -> np.ndarray:
    """Return the fold of each patient [P], assigned in order, from their findings [P,K].

    A patient goes to the fold that lacks the rarest of their findings most; ties go to the smallest fold, then the
    first.
    """
    wanted = np.tile(held.sum(0) / k, (k, 1))
    count, chosen = held.sum(0), np.zeros(len(held), dtype=np.int64)
    sizes = np.zeros(k)
    for i, row in enumerate(held):
        own = np.flatnonzero(row)
        lack = wanted[:, own[np.argmin(count[own])]] if len(own) else np.zeros(k)
        chosen[i] = fold = np.lexsort((np.arange(k), sizes, -lack))[0]
        wanted[fold] -= row
        sizes[fold] += 1
    return chosen


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
    images: Callable[[Sequence[str]], Tensor],
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
