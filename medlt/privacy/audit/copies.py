"""Copy screening: is an image of the run nearer to a training image than real images of other patients are?

The measure of nearness is the isolation of an image with its nearest training image (`medlt.metrics.nearest`), in the
patient embedding (which sees through moves, turns and light) and of the image at 32 x 32 pixels (which sees what a
denoiser leaves of a copy); an image is a hit where either is below its limit.

The null are held-out patients, one image each: their ratios to the training images are what chance looks like, and the
limits are their quantiles at the stated false-positive rate, shared out between the measures. Among n synthetic images
h hits are more than chance where P[H >= h] < 1 - level; H is beta-binomial, so that the error of a limit taken from M
held-out patients is counted in. Whether the search would find a copy is measured on this very run: training images go
through each plant and are searched for in the same way. Where those that must be found are not, nothing is concluded.

That distances to the closest record say little alone is known (arXiv 2505.01524); hence null, plants and contrast.
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
from torch.nn import functional

from medlt.metrics.draws import owners
from medlt.metrics.nearest import isolation, nearest
from medlt.privacy.audit.embedding import Embed, prepared
from medlt.privacy.audit.plants import Plant
from medlt.privacy.audit.rates import Share, share
from medlt.rng import numpy_generator, torch_generator
from medlt.types import InputError

Conclusion: TypeAlias = Literal["copies found", "no copies found", "cannot conclude"]


def low_pass(images: Tensor, size: int = 32) -> Tensor:
    """Return unit vectors [B,size^2], on the CPU, of images [B,1,H,W] made small: a product of two is their
    correlation.
    """
    parts = [prepared(block, size).flatten(1).cpu() for block in torch.split(images, 1024)]
    pixels = torch.cat(parts)
    return functional.normalize(pixels - pixels.mean(1, keepdim=True))


@dataclass(frozen=True)
class Searcher:
    """All training images under each measure, and the ratio below which each says hit."""

    measures: Mapping[str, Embed]
    train: Mapping[str, Tensor]
    neighbours: int
    limits: Mapping[str, float]

    def look(self, images: Tensor) -> pd.DataFrame:
        """Return one row an image: `ratio NAME` of each measure, the `train` row of the clearest, `similarity`, `hit`."""
        found = [
            isolation(measure(images), self.train[name], self.neighbours) for name, measure in self.measures.items()
        ]
        ratios = np.stack([one.ratio.double().nan_to_num(torch.inf).numpy() for one in found], 1)  # [B, measures]
        parts = ratios / np.array([self.limits[name] for name in self.measures])
        clearest, every = parts.argmin(1), np.arange(len(parts))
        told = {f"ratio {name}": ratios[:, i] for i, name in enumerate(self.measures)}
        told |= {"measure": np.array(list(self.measures))[clearest]}
        told |= {"train": np.stack([one.row.numpy() for one in found], 1)[every, clearest]}
        told |= {"similarity": np.stack([one.similarity.double().numpy() for one in found], 1)[every, clearest]}
        return pd.DataFrame({**told, "hit": parts.min(1) < 1})

    def limited(self, null: pd.DataFrame, rate: float) -> Searcher:
        """Return the same with limits from the null, rows of `look`: each measure at its part of the false-positive
        rate.
        """
        below = _below(rate, len(null), len(self.measures))
        limits = {n: max(float(np.sort(null[f"ratio {n}"])[below - 1]), 1e-6) for n in self.measures}
        return Searcher(self.measures, self.train, self.neighbours, limits)

    def parts(self, looked: pd.DataFrame) -> np.ndarray:
        """Return ratios of rows of `look` as parts of these limits, of the clearest measure, [B]; a hit is below 1."""
        ratios = looked[[f"ratio {name}" for name in self.limits]].to_numpy(np.float64)
        return np.asarray((ratios / np.array(list(self.limits.values()))).min(1))


def _below(rate: float, held: int, measures: int) -> int:
    """Return the place k of the limit among `held` ratios, lowest first: a new one is below it with chance k / (held +
    1).
    """
    return max(1, int(rate / measures * (held + 1) + 1e-9))


@dataclass(frozen=True)
class CopySearch:
    """What the search found. `images`: one row a synthetic image (index uid); `plants`: one row a plant.

    rate: the false-positive rate an image, by the null; measured: share of held-out patients hit by limits from the
    other half of them; expected: hits by chance among the synthetic images; p: probability of as many; unmistakable:
    images whose ratio is below half the lowest of all held-out patients; hidden: the largest share of copies that such
    hits allow; leaning: share of synthetic images nearer to training than to as many held-out images, 1/2 by chance.
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
    leaning: Share
    conclusion: Conclusion
    missed: tuple[str, ...]

    @property
    def hits(self) -> int:
        """How many synthetic images were hit."""
        return int(self.images["hit"].sum())

    @property
    def counts(self) -> dict[str, int]:
        """What there was to count."""
        return {"hits": self.hits, "synthetic": len(self.images)}

    @property
    def passed(self) -> bool | None:
        """True: no copies found; False: found; None: cannot conclude."""
        return {"copies found": False, "no copies found": True, "cannot conclude": None}[self.conclusion]

    @property
    def sentence(self) -> str:
        """The result in words."""
        told = (
            f"{self.hits} of {len(self.images)} synthetic images are nearer to a training image than"
            f" {1 - self.rate:.1%} of {self.held_out} held-out patients' images are, {self.expected:.1f} expected by"
            f" chance (p = {self.p:.2g}), {self.unmistakable} of them unmistakably; false-positive rate measured"
            f" {self.measured}"
        )
        if self.conclusion == "cannot conclude":
            return f"Cannot conclude, planted copies were missed ({', '.join(self.missed)}): {told}"
        if self.conclusion == "copies found":
            return f"Copies found: {told}"
        return f"No copies found: {told}; up to {self.hidden:.1%} of the images could be copies and not show"


def search_copies(
    embed: Embed, synthetic: Tensor, train: Tensor, held: Tensor, plants: Mapping[str, Plant], *,
    uids: Sequence[str], held_patients: Sequence[str], seed: int, rate: float = 0.01, planted: int = 200,
    required: Collection[str] | None = None, recall: float = 0.8, level: float = 0.95, neighbours: int = 50,
) -> CopySearch:  # fmt: skip
    """Search synthetic images [n,1,H,W] (of `uids`) for copies of train [N,1,H,W], against held [M,1,H,W].

    Images are uint8 or float in [0,1], all of one size and made so in one way. `required`: names of `plants` whose
    recall must be at least `recall` before the absence of copies is believed (all, if not given); the others are only
    told. `rate` is the false-positive rate an image; it is raised to what half of the held-out patients can resolve.
    Held-out patients must be drawn like those trained on. Raises InputError for fewer than 8 of them, fewer than 3
    training images, no synthetic one, or names that do not fit.
    """
    of = owners([str(one) for one in held_patients])
    _checked(len(set(of.tolist())), len(of), len(held), len(train), len(uids), len(synthetic))
    measures: Mapping[str, Embed] = {"embedding": embed, "pixels": low_pass}
    vectors = {name: measure(train) for name, measure in measures.items()}
    open_ = Searcher(measures, vectors, neighbours, dict.fromkeys(measures, 1.0))
    null = open_.look(held[torch.from_numpy(_one_each(of, numpy_generator(seed, "copies null")))])
    rate = max(rate, len(measures) / (len(null) // 2 + 1))
    search = open_.limited(null, rate)
    found = search.look(synthetic).set_index(pd.Index(uids, name="uid"))
    table = _recalls(search, train, plants, required, planted, seed)
    lean = _leaning(embed(synthetic), vectors["embedding"], embed(held), numpy_generator(seed, "leaning"))
    measured = _false_positives(open_, null, rate, numpy_generator(seed, "copies halves"))
    plain = int((search.parts(found) < 0.5 * search.parts(null).min()).sum())
    return _judged(found, table, null, len(measures), rate, measured, plain, lean, recall, level)


def _checked(patients: int, named: int, held: int, train: int, uids: int, synthetic: int) -> None:
    """Raise InputError where there is too little, or names do not fit images."""
    if named != held or uids != synthetic:
        raise InputError(f"{named} patients of {held} held-out, {uids} uids of {synthetic} synthetic images; one each")
    if patients < 8 or train < 3 or not synthetic:
        raise InputError(
            f"{patients} held-out patients, {train} training and {synthetic} synthetic images cannot be screened;"
            " give at least 8, 3 and 1"
        )


def _judged(
    found: pd.DataFrame, table: pd.DataFrame, null: pd.DataFrame, measures: int, rate: float, measured: Share,
    plain: int, lean: Share, recall: float, level: float,
) -> CopySearch:  # fmt: skip
    """Return the conclusion: more hits than chance, or plain ones; else, where plants were found, none."""
    hits, n, m = int(found["hit"].sum()), len(found), len(null)
    k = _below(rate, m, measures) * measures
    p = float(np.clip(stats.betabinom.sf(hits - 1, n, k, m + 1 - k), 0, 1))
    needed = table.loc[table["required"], "recall"]
    missed = tuple(f"{name}: recall {value:.2f}" for name, value in needed.items() if value < recall)
    hidden = min(1.0, share(hits, n, 2 * level - 1, "exact").high / max(float(needed.min()), 1e-9))
    conclusion: Conclusion = "cannot conclude" if missed or not len(needed) else "no copies found"
    if p < 1 - level or plain:
        conclusion = "copies found"
    return CopySearch(found, table, rate, measured, m, n * k / (m + 1), p, plain, hidden, lean, conclusion, missed)


def _one_each(of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one row of each owner, chosen by chance."""
    order = rng.permutation(len(of))
    return np.sort(order[np.unique(of[order], return_index=True)[1]])


def _false_positives(search: Searcher, null: pd.DataFrame, rate: float, rng: np.random.Generator) -> Share:
    """Return the share of held-out patients hit, those of each half by limits from the other."""
    half = rng.permutation(len(null)) < len(null) // 2
    parts = [search.limited(null[half != side], rate).parts(null[half == side]) for side in (True, False)]
    return share(int((np.concatenate(parts) < 1).sum()), len(null))


def _recalls(
    search: Searcher, train: Tensor, plants: Mapping[str, Plant], required: Collection[str] | None, planted: int,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Return one row a plant: how many, found, recall with interval, `named` (the share led back to the very image)."""
    rows = numpy_generator(seed, "plants").permutation(len(train))[:planted]
    images = prepared(train[torch.from_numpy(rows)], train.shape[-1])
    out = []
    for name, plant in plants.items():
        looked = search.look(plant(images, torch_generator(seed, "plant", name)))
        found, named = int(looked["hit"].sum()), float((looked["train"] == rows).mean())
        told = share(found, len(rows))
        out.append((name, len(rows), found, *told, named, required is None or name in required))
    columns = ["plant", "planted", "found", "recall", "low", "high", "named", "required"]
    return pd.DataFrame(out, columns=columns).set_index("plant")


def _leaning(synthetic: Tensor, train: Tensor, held: Tensor, rng: np.random.Generator) -> Share:
    """Return the share of synthetic images nearer to one of n training images than to any of n held-out ones; a tie is a
    half.
    """
    n = min(len(train), len(held))
    some = [torch.from_numpy(rng.permutation(len(of))[:n]) for of in (train, held)]
    to_train, to_held = (
        nearest(synthetic, of[rows], 1).similarity[:, 0] for of, rows in zip((train, held), some, strict=True)
    )
    nearer = int((to_train > to_held).sum()) + int((to_train == to_held).sum()) // 2
    return share(nearer, len(synthetic))
