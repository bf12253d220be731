"""Re-identification: do synthetic images lead back to patients of the training more often than to patients that the
model never saw?

An image is linked to a set of patients where its similarity to the nearest of them, in the patient embedding, is above
a threshold: that which held-out patients' images pass at the stated rate, all of them wrongly, because none of these
patients is in the set. Training patients form several sets, held-out ones one, all of equal number, so that chance is
the same for each; the test asks how probable so few links to the held-out set are, were it one of them. Whether the
embedding would know a patient again is measured beside it, on real pairs of patients that an embedding was not trained
on (Packhäuser et al., Scientific Reports 12:14851, 2022); where it would not, the absence of links says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.metrics.draws import owners
from medlt.privacy.audit.embedding import Embed, fit_embedding
from medlt.privacy.audit.rates import Share, area, share
from medlt.rng import numpy_generator
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError


@dataclass(frozen=True)
class Verification:
    """How well an embedding knows patients it was not trained on.

    auc: of pairs of images, same patient against different ones, patients resampled; recall: share of patients with
    several images who are linked by one of them, at the false-link rate `rate` among `gallery` patients.
    """

    auc: Share
    recall: Share
    rate: float
    pairs: int
    gallery: int


def verify(
    images: Tensor,
    patients: Sequence[str],
    *,
    runtime: Runtime,
    store: Store,
    rate: float = 0.05,
    folds: int = 2,
    most: int = 2000,
    **settings: Any,
) -> Verification:
    """Train an embedding without each fold of patients in turn, and ask it about that fold, or `most` patients of it.

    images uint8 [N,1,S,S]; settings as of `fit_embedding`; the seed is the runtime's. Raises InputError where fewer
    than 2 patients of a fold have two images.
    """
    of = owners([str(one) for one in patients])
    seed, rng = runtime.seed, numpy_generator(runtime.seed, "verification folds")
    fold = rng.permutation(of.max() + 1)[of] % folds
    found = []
    for k in range(folds):
        rest, asked = np.flatnonzero(fold != k), rng.permutation(np.unique(of[fold == k]))[:most]
        own = np.flatnonzero(np.isin(of, asked))
        known = images[torch.from_numpy(rest)]
        embed = fit_embedding(known, of[rest].tolist(), runtime=runtime, store=store, **settings)
        found.append(_asked(embed(images[torch.from_numpy(own)]), of[own], rate, seed))
    same, near, owner, linked, gallery = (np.concatenate([one[i] for one in found]) for i in range(5))
    auc = area(same, near, owner, numpy_generator(seed, "verification auc"))
    return Verification(auc, share(int(linked.sum()), len(linked)), rate, int(same.sum()), int(gallery.min()))


def _asked(vectors: Tensor, of: np.ndarray, rate: float, seed: int) -> tuple[np.ndarray, ...]:
    """Return pairs (same [P], similarity [P], owner [P]), linked [patients of several images], gallery [1]."""
    near = (vectors @ vectors.T).double().numpy()
    first, second = np.triu_indices(len(of), 1)
    several = np.flatnonzero(np.bincount(of) > 1)
    if len(several) < 2:
        raise InputError(f"{len(several)} patients of a fold have two images or more; re-identification needs several")
    rng = numpy_generator(seed, "verification queries")
    shown = np.array([rng.choice(np.flatnonzero(of == one)) for one in np.unique(of)])
    whose = of[shown]
    strangers = np.where(of[None] == whose[:, None], -np.inf, near[shown]).max(1)
    threshold = np.quantile(strangers, 1 - rate, method="higher")
    own = np.where((of[None] == whose[:, None]) & (np.arange(len(of))[None] != shown[:, None]), near[shown], -np.inf)
    linked = own.max(1)[np.isin(whose, several)] > threshold
    return of[first] == of[second], near[first, second], of[first], linked, np.array([len(shown)])


@dataclass(frozen=True)
class Reidentification:
    """Shares of synthetic images linked to `patients` held-out ones (`null`) and to as many trained on, on average.

    images: one row a synthetic image, its highest similarities and to how many sets it is linked; p: see the module.
    """

    images: pd.DataFrame
    linked: Share
    null: Share
    p: float
    rate: float
    patients: int
    verification: Verification
    least: float

    @property
    def counts(self) -> dict[str, int]:
        """What there was to count."""
        return {"synthetic": len(self.images)}

    @property
    def passed(self) -> bool | None:
        """False: linked more often than chance; True: not; None: not, but real patients are not known again either."""
        if self.p < 0.05 and self.linked.value > self.null.value:
            return False
        return True if self.verification.recall.value >= self.least else None

    @property
    def sentence(self) -> str:
        """The result in words."""
        said = {True: "No re-identification", False: "Re-identification", None: "Cannot conclude"}[self.passed]
        known = self.verification
        return (
            f"{said}: {self.linked} of {len(self.images)} synthetic images are linked to {self.patients} patients"
            f" trained on, {self.null} to as many held-out ones (p = {self.p:.2g}; threshold at {self.rate:.1%}"
            f" false links); of real patients {known.recall} are known again at {known.rate:.1%} false links (AUC"
            f" {known.auc})"
        )


def reidentify(
    embed: Embed, synthetic: Tensor, train: Tensor, held: Tensor, verification: Verification, *,
    uids: Sequence[str], train_patients: Sequence[str], held_patients: Sequence[str], seed: int, least: float = 0.5,
) -> Reidentification:  # fmt: skip
    """Link synthetic images [n,1,H,W] to patients of train [N,1,H,W] and of held [M,1,H,W], at verification's rate.

    `least`: the recall on real patients below which the absence of links is not believed. Half of the held-out patients
    set the threshold, the other half are the set held against sets of as many training patients, one image each. Raises
    InputError for fewer than 8 held-out patients, no training patient or no synthetic image.
    """
    rng, rate = numpy_generator(seed, "re-identification"), verification.rate
    ours, others = (_one_each(names, rng) for names in (train_patients, held_patients))
    if len(others) < 8 or not len(ours) or not len(synthetic):
        raise InputError(
            f"{len(others)} held-out and {len(ours)} training patients, {len(synthetic)} synthetic images; give at"
            " least 8, 1 and 1"
        )
    asking, gallery = others[: len(others) // 2], others[len(others) // 2 :]
    count = min(len(gallery), len(ours))
    sets = [embed(train[_rows(part)]) for part in ours[: len(ours) // count * count].reshape(-1, count)]
    strangers = np.stack([_nearest(embed(held[_rows(asking)]), one) for one in sets])
    threshold = float(np.quantile(strangers, 1 - rate, method="higher"))
    asked = embed(synthetic)
    near = np.stack([_nearest(asked, one) for one in [*sets, embed(held[_rows(gallery[:count])])]])  # [sets + 1, n]
    hit = near > threshold
    told = {"similarity train": near[:-1].max(0), "similarity held": near[-1]}
    told |= {"linked train": hit[:-1].sum(0), "linked held": hit[-1]}
    linked = share(round(float(hit[:-1].sum(1).mean())), len(asked))
    return Reidentification(
        pd.DataFrame(told, index=pd.Index(uids, name="uid")), linked, share(int(hit[-1].sum()), len(asked)),
        _fewer(hit[:-1].sum(0), hit[-1], len(hit)), rate, count, verification, least,
    )  # fmt: skip


def _fewer(ours: np.ndarray, held: np.ndarray, sets: int) -> float:
    """Return P of so few links to the held-out set or fewer, were it one of `sets` like any other; links of each image
    [n].

    An image linked to c of s sets is linked to a given one with probability c / s; the sum of such flips over images is
    Poisson-binomial.
    """
    mass = np.ones(1)
    for probability in (ours + held) / sets:
        mass = np.convolve(mass, [1 - probability, probability])
    return float(mass[: int(held.sum()) + 1].sum())


def _nearest(vectors: Tensor, of: Tensor) -> np.ndarray:
    """Return the similarity [B] of each of vectors [B,D] to the nearest of `of` [G,D]."""
    near: np.ndarray = (vectors @ of.T).max(1).values.numpy()
    return near


def _one_each(patients: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Return one row of each patient, patients in chance order."""
    of = owners([str(one) for one in patients])
    order = rng.permutation(len(of))
    return np.asarray(rng.permutation(order[np.unique(of[order], return_index=True)[1]]))


def _rows(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows)
