"""Search for copies: compare how near synthetic images and images of other patients are to real images.

The measures (`medlt.privacy.audit.search`) are the isolation in the patient embedding and on 32 x 32 pixels, and the
distances under transformations (`medlt.privacy.audit.matching`): whole, patch and blend. References are all real images
of the run, of train patients and of held-out ones, since a copy of either is a copy of a patient.

Measures are brought to one scale, by a low quantile of train images, each compared with all other patients. The
relative distance of an image is the lowest of its measures. Its null distribution comes from held-out patients, one
image each, searched in the same way among all patients but themselves. The limit is the k-th lowest of these M, with
k / (M + 1) the given false-positive rate, so a search over many transformations and measures has the stated rate. Among
n synthetic images, h hits are more than chance if P[H >= h] < 1 - level. H is beta-binomial, which includes the error
of a limit from M held-out patients. The recall of the search is measured on the same run, by kind: planted copies of
its own images are searched in the same way. If the search misses required plants, there is no conclusion.

Distances to the closest record alone are weak evidence (arXiv 2505.01524); hence null distribution and plants.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from medlt.metrics.draws import owners
from medlt.metrics.nearest import nearest
from medlt.privacy.audit.embedding import prepared
from medlt.privacy.audit.plants import Plant
from medlt.privacy.audit.rates import Share, share
from medlt.privacy.audit.search import Measures, Searcher, limit, low_pass, rank
from medlt.rng import numpy_generator, torch_generator
from medlt.types import InputError

Conclusion: TypeAlias = Literal["copies detected", "no copies detected", "cannot conclude"]
NULL = 600  # most held-out patients that are searched
USUAL, QUANTILE = 200, 0.02  # train images, and the quantile of their distances, that give the scale of a measure


@dataclass(frozen=True)
class CopySearch:
    """Result of the search. `images`: one row for each synthetic image (index uid); `plants`: one row for each plant.

    rate: false-positive rate per image under the null; measured: share of held-out patients hit by limits from their
    other half; expected: hits expected by chance among the synthetic images; p: probability of as many hits;
    unmistakable: images whose relative distance is below half the lowest of all held-out patients; hidden: the largest
    share of copies, of the planted kinds, that these hits allow; detectable: the smallest share of copies of the
    required kinds whose expected hits are more than chance; leaning: share of synthetic images nearer to training
    than to as many held-out images, 1/2 by chance; missed: required plants with too low a recall.
    """

    images: pd.DataFrame
    plants: pd.DataFrame
    rate: float
    measured: Share
    held_out: int
    expected: float
    p: float
    unmistakable: int
    hidden: float
    detectable: float
    leaning: Share
    conclusion: Conclusion
    missed: tuple[str, ...]

    @property
    def hits(self) -> int:
        """Number of synthetic images that are hits."""
        return int(self.images["hit"].sum())

    @property
    def counts(self) -> dict[str, int]:
        """Counts for the record of the audit: hits, those on held-out images, synthetic images."""
        others = int((self.images["hit"] & (self.images["copied"] == "held-out")).sum())
        return {"hits": self.hits, "hits_on_held_out": others, "synthetic": len(self.images)}

    @property
    def passed(self) -> bool | None:
        """True if no copies were detected, False if some were, None without a conclusion."""
        return {"copies detected": False, "no copies detected": True, "cannot conclude": None}[self.conclusion]

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        numbers = (
            f"{self.hits} of {len(self.images)} synthetic images are nearer to a real image"
            f" ({self.counts['hits_on_held_out']} of them to a held-out one) than {1 - self.rate:.1%} of the images of"
            f" {self.held_out} held-out patients are to other patients, {self.expected:.1f} expected by chance"
            f" (p = {self.p:.2g}), {self.unmistakable} of them unmistakably; measured false-positive rate"
            f" {self.measured}"
        )
        if self.conclusion == "cannot conclude":
            return f"Cannot conclude, because planted copies were missed ({', '.join(self.missed)}): {numbers}"
        if self.conclusion == "copies detected":
            return f"Copies detected: {numbers}"
        kinds = ", ".join(self.plants.index[self.plants["required"]])
        return (
            f"No copies detected: {numbers}; up to {self.hidden:.1%} of the images could be undetected copies of these"
            f" kinds, of which a share of {self.detectable:.1%} is the smallest that it could have detected: {kinds}."
            " Nothing is known of other kinds"
        )


def search_copies(
    measures: Measures, synthetic: Tensor, train: Tensor, held_out: Tensor, plants: Mapping[str, Plant], *,
    uids: Sequence[str], train_patients: Sequence[str], held_out_patients: Sequence[str], seed: int,
    rate: float = 0.01, planted: int = 100, required: Collection[str] | None = None, recall: float = 0.8,
    level: float = 0.95,
) -> CopySearch:  # fmt: skip
    """Search synthetic images [n,1,H,W] (of `uids`) for copies of train [N,1,H,W] and held_out [M,1,H,W] images.

    Images are uint8 or float in [0,1], all of one size and with the same preprocessing. `required`: names of `plants`
    whose recall must be at least `recall` for the conclusion "no copies detected" (default: all); the others are only
    reported. `rate` is the false-positive rate per image; it is raised to what half of the held-out patients can
    resolve. Held-out patients must be sampled like training patients. Raises InputError for fewer than 8 of them, fewer
    than 3 training images, no synthetic image, or names that do not fit.
    """
    names = [*map(str, train_patients), *map(str, held_out_patients)]
    _checked(len(set(map(str, held_out_patients))), len(names), len(held_out), len(train), len(uids), len(synthetic))
    real, owner = torch.cat([_float(train), _float(held_out)]), torch.from_numpy(owners(names))
    built = measures(real, owner)
    usual = torch.from_numpy(numpy_generator(seed, "copies usual").permutation(len(train))[:USUAL])
    plain = Searcher(built, len(train), np.ones(sum(map(len, built))))
    values = plain.search(real[usual], owner[usual])[[f"relative {name}" for name in plain.names]].to_numpy()
    scaled = Searcher(built, len(train), np.quantile(values, QUANTILE, axis=0).clip(1e-6))
    one_each = _one_each(owner[len(train) :].numpy(), numpy_generator(seed, "copies null"))[:NULL] + len(train)
    null = scaled.search(real[one_each], owner[one_each])["relative"].to_numpy()
    rate = max(rate, 1 / (len(null) // 2 + 1))
    searcher = Searcher(built, len(train), scaled.scales, limit(null, rate))
    images = searcher.search(synthetic).set_index(pd.Index(uids, name="uid"))
    table = _recalls(searcher, real, plants, required, planted, seed)
    lean = _leaning(low_pass(synthetic), low_pass(train), low_pass(held_out), numpy_generator(seed, "leaning"))
    measured = _false_positives(null, rate, numpy_generator(seed, "copies halves"))
    sure = int((images["relative"] < 0.5 * null.min()).sum())
    return _concluded(images, table, len(null), rate, measured, sure, lean, recall, level)


def _float(images: Tensor) -> Tensor:
    """Return images as float32 in [0,1], at their size."""
    return prepared(images, images.shape[-1]).cpu()


def _checked(patients: int, named: int, held_out: int, train: int, uids: int, synthetic: int) -> None:
    """Raise InputError for too few images or patients, and for names that do not fit the images."""
    if named != train + held_out or uids != synthetic:
        raise InputError(
            f"{named} patients for {train} training and {held_out} held-out images, {uids} uids for {synthetic}"
            " synthetic images; give one each"
        )
    if patients < 8 or train < 3 or not synthetic:
        raise InputError(
            f"{patients} held-out patients, {train} training and {synthetic} synthetic images are too few to search for"
            " copies; give at least 8, 3 and 1"
        )


def _concluded(
    images: pd.DataFrame, table: pd.DataFrame, m: int, rate: float, measured: Share, sure: int, lean: Share,
    recall: float, level: float,
) -> CopySearch:  # fmt: skip
    """Return the result. Copies are detected if hits are more than chance, or if any is unmistakable."""
    hits, n, k = int(images["hit"].sum()), len(images), rank(rate, m)
    p = float(np.clip(stats.betabinom.sf(hits - 1, n, k, m + 1 - k), 0, 1))
    needed = table.loc[table["required"], "recall"]
    missed = tuple(f"{name}: recall {value:.2f}" for name, value in needed.items() if value < recall)
    hidden = min(1.0, share(hits, n, 2 * level - 1, "exact").high / max(float(needed.min()), 1e-9))
    least = min(max(float(needed.min()), 1e-9), 1.0) if len(needed) else 1e-9
    enough = next((h for h in range(1, n + 1) if stats.betabinom.sf(h - 1, n, k, m + 1 - k) < 1 - level), n)
    conclusion: Conclusion = "cannot conclude" if missed or not len(needed) else "no copies detected"
    if p < 1 - level or sure:
        conclusion = "copies detected"
    return CopySearch(
        images, table, rate, measured, m, n * k / (m + 1), p, sure, hidden, min(1.0, enough / n / least), lean,
        conclusion, missed,
    )  # fmt: skip


def _one_each(of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one random row of each owner, the owners in random order."""
    order = rng.permutation(len(of))
    return rng.permutation(order[np.unique(of[order], return_index=True)[1]])


def _false_positives(null: np.ndarray, rate: float, rng: np.random.Generator) -> Share:
    """Return the share of held-out patients that are hits, with limits from the other half of them."""
    half = rng.permutation(len(null)) < len(null) // 2
    hits = [(null[half == side] < limit(null[half != side], rate)).sum() for side in (True, False)]
    return share(int(sum(hits)), len(null))


def _recalls(
    search: Searcher, real: Tensor, plants: Mapping[str, Plant], required: Collection[str] | None, planted: int,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Return one row for each plant, of train and held-out images: counts, recall with interval, and `named`.

    `named` is the share traced to an image that is in it: its own or one of the three before it.
    """
    rows = numpy_generator(seed, "plants").permutation(len(real))[:planted]
    out = []
    for name, plant in plants.items():
        result = search.search(plant(real[torch.from_numpy(rows)], torch_generator(seed, "plant", name)))
        at = result["row"].to_numpy() + np.where(result["copied"] == "train", 0, search.train)
        detected, named = (
            int(result["hit"].sum()),
            float(np.any([at == np.roll(rows, shift) for shift in range(4)], 0).mean()),
        )
        out.append(
            (name, len(rows), detected, *share(detected, len(rows)), named, required is None or name in required)
        )
    columns = ["plant", "planted", "detected", "recall", "low", "high", "named", "required"]
    return pd.DataFrame(out, columns=columns).set_index("plant")


def _leaning(synthetic: Tensor, train: Tensor, held_out: Tensor, rng: np.random.Generator) -> Share:
    """Return the share of synthetic images nearer to one of n training images than to any of n held-out ones.

    A tie counts one half.
    """
    n = min(len(train), len(held_out))
    some = [torch.from_numpy(rng.permutation(len(of))[:n]) for of in (train, held_out)]
    to_train, to_held = (
        nearest(synthetic, of[rows], 1).similarity[:, 0] for of, rows in zip((train, held_out), some, strict=True)
    )
    nearer = int((to_train > to_held).sum()) + int((to_train == to_held).sum()) // 2
    return share(nearer, len(synthetic))
