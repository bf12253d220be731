"""Re-identification: compare how often synthetic images match training patients and patients the model never saw.

An image is linked to a set of patients if its similarity to the nearest of them, in the patient embedding, is above a
threshold. Images of held-out patients pass this threshold at the given rate, always wrongly, because these patients are
not in the set. Training patients form several sets and held-out patients one, all of equal size, so that the
probability of a chance link is equal. The p value is the probability of so few links to the held-out set if it were one
of the training sets. The recall of the embedding is measured on real pairs of patients that it was not trained on
(Packhäuser et al., Scientific Reports 12:14851, 2022). If it is low, the absence of links is no evidence.
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
    """How well an embedding recognises patients that it was not trained on.

    auc: of pairs of images, same patient against different patients, with patients resampled; recall: share of patients
    with several images that are linked by one of them, at the false-link rate `rate` among `gallery` patients.
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
    """Train an embedding without each fold of patients in turn, and verify it on at most `most` patients of that fold.

    images: uint8 [N,1,S,S]; settings: those of `fit_embedding`. Raises InputError if fewer than 2 patients of a fold
    have two images.
    """
    of = owners([str(one) for one in patients])
    seed, rng = runtime.seed, numpy_generator(runtime.seed, "verification folds")
    fold = rng.permutation(of.max() + 1)[of] % folds
    parts = []
    for k in range(folds):
        rest, chosen = np.flatnonzero(fold != k), rng.permutation(np.unique(of[fold == k]))[:most]
        own = np.flatnonzero(np.isin(of, chosen))
        known = images[torch.from_numpy(rest)]
        embed = fit_embedding(known, of[rest].tolist(), runtime=runtime, store=store, **settings)
        parts.append(_verified(embed(images[torch.from_numpy(own)]), of[own], rate, seed))
    same, near, owner, linked, gallery = (np.concatenate([one[i] for one in parts]) for i in range(5))
    auc = area(same, near, owner, numpy_generator(seed, "verification auc"))
    return Verification(auc, share(int(linked.sum()), len(linked)), rate, int(same.sum()), int(gallery.min()))


def _verified(vectors: Tensor, of: np.ndarray, rate: float, seed: int) -> tuple[np.ndarray, ...]:
    """Return pairs (same [P], similarity [P], owner [P]), linked [patients with several images], gallery [1]."""
    near = (vectors @ vectors.T).double().numpy()
    first, second = np.triu_indices(len(of), 1)
    several = np.flatnonzero(np.bincount(of) > 1)
    if len(several) < 2:
        raise InputError(
            f"{len(several)} patients of a fold have two images or more; re-identification needs at least 2 of them"
        )
    rng = numpy_generator(seed, "verification queries")
    queries = np.array([rng.choice(np.flatnonzero(of == one)) for one in np.unique(of)])
    whose = of[queries]
    strangers = np.where(of[None] == whose[:, None], -np.inf, near[queries]).max(1)
    threshold = np.quantile(strangers, 1 - rate, method="higher")
    others = np.arange(len(of))[None] != queries[:, None]
    own = np.where((of[None] == whose[:, None]) & others, near[queries], -np.inf)
    linked = own.max(1)[np.isin(whose, several)] > threshold
    return of[first] == of[second], near[first, second], of[first], linked, np.array([len(queries)])


@dataclass(frozen=True)
class Reidentification:
    """Shares of synthetic images linked to `patients` held-out patients (`null`) and to as many training patients.

    images: one row for each synthetic image, with its highest similarities and the number of sets it is linked to; p:
    see the module; least: recall on real patients that a conclusion needs.
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
        """Counts for the record of the audit."""
        return {"synthetic": len(self.images)}

    @property
    def passed(self) -> bool | None:
        """False if linked more often than chance; True if not; None if real patients are not recognised either."""
        if self.p < 0.05 and self.linked.value > self.null.value:
            return False
        return True if self.verification.recall.value >= self.least else None

    @property
    def detectable(self) -> float:
        """The smallest share of images of recognisable patients whose links would exceed those of held-out patients."""
        n = len(self.images)
        enough = next((h for h in range(n + 1) if share(h, n).low > self.null.high), n)
        return min(1.0, enough / n / max(self.verification.recall.value, 1e-9))

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        result = {True: "No re-identification", False: "Re-identification", None: "Cannot conclude"}[self.passed]
        known = self.verification
        return (
            f"{result}: {self.linked} of {len(self.images)} synthetic images are linked to {self.patients} training"
            f" patients, {self.null} to as many held-out patients (p = {self.p:.2g}; threshold at {self.rate:.1%}"
            f" false links); of real patients {known.recall} are recognised at {known.rate:.1%} false links (AUC"
            f" {known.auc}); the smallest share of images that it could have detected is {self.detectable:.1%}"
        )


def reidentify(
    embed: Embed, synthetic: Tensor, train: Tensor, held_out: Tensor, verification: Verification, *,
    uids: Sequence[str], train_patients: Sequence[str], held_out_patients: Sequence[str], seed: int,
    least: float = 0.5,
) -> Reidentification:  # fmt: skip
    """Link synthetic images [n,1,H,W] to patients of train [N,1,H,W] and held_out [M,1,H,W], at verification's rate.

    `least`: the recall on real patients below which there is no conclusion. Half of the held-out patients set the
    threshold. The other half are compared with sets of as many training patients, one image each. Raises InputError for
    fewer than 8 held-out patients, no training patient or no synthetic image.
    """
    rng, rate = numpy_generator(seed, "re-identification"), verification.rate
    ours, others = (_one_each(names, rng) for names in (train_patients, held_out_patients))
    if len(others) < 8 or not len(ours) or not len(synthetic):
        raise InputError(
            f"{len(others)} held-out and {len(ours)} training patients, {len(synthetic)} synthetic images; give at"
            " least 8, 1 and 1"
        )
    probes, gallery = others[: len(others) // 2], others[len(others) // 2 :]
    count = min(len(gallery), len(ours))
    sets = [embed(train[_rows(part)]) for part in ours[: len(ours) // count * count].reshape(-1, count)]
    strangers = np.stack([_nearest(embed(held_out[_rows(probes)]), one) for one in sets])
    threshold = float(np.quantile(strangers, 1 - rate, method="higher"))
    queries = embed(synthetic)
    sets += [embed(held_out[_rows(gallery[:count])])]
    near = np.stack([_nearest(queries, one) for one in sets])  # [sets + 1, n]
    hit = near > threshold
    columns = {"similarity_train": near[:-1].max(0), "similarity_held_out": near[-1]}
    columns |= {"linked_train": hit[:-1].sum(0), "linked_held_out": hit[-1]}
    linked = share(round(float(hit[:-1].sum(1).mean())), len(queries))
    return Reidentification(
        pd.DataFrame(columns, index=pd.Index(uids, name="uid")), linked, share(int(hit[-1].sum()), len(queries)),
        _fewer(hit[:-1].sum(0), hit[-1], len(hit)), rate, count, verification, least,
    )  # fmt: skip


def _fewer(ours: np.ndarray, held_out: np.ndarray, sets: int) -> float:
    """Return the probability of at most the observed links to the held-out set, if it were one of `sets` equal sets.

    ours, held_out: links of each image [n]. An image linked to c of s sets is linked to a given one with probability
    c / s; the sum over images is Poisson-binomial.
    """
    mass = np.ones(1)
    for probability in (ours + held_out) / sets:
        mass = np.convolve(mass, [1 - probability, probability])
    return float(mass[: int(held_out.sum()) + 1].sum())


def _nearest(vectors: Tensor, of: Tensor) -> np.ndarray:
    """Return the similarity [B] of vectors [B,D] to their nearest of `of` [G,D]."""
    near: np.ndarray = (vectors @ of.T).max(1).values.numpy()
    return near


def _one_each(patients: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Return one random row of each patient, in random order."""
    of = owners([str(one) for one in patients])
    order = rng.permutation(len(of))
    return np.asarray(rng.permutation(order[np.unique(of[order], return_index=True)[1]]))


def _rows(rows: np.ndarray) -> Tensor:
    """Return row numbers as a tensor."""
    return torch.from_numpy(rows)
