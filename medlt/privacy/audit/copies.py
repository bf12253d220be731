"""Search for near-copies: compare how near synthetic images and images of other patients are to training images.

The measure is the isolation of an image with its nearest training image (`medlt.metrics.nearest`). It is computed in
the patient embedding, which ignores shifts, rotations and brightness, and on 32 x 32 pixels, which keep what a denoiser
leaves of a copy. An image is a hit if either ratio is below its limit.

The null distribution comes from held-out patients, one image each. The limits are quantiles of their ratios at the
given false-positive rate, divided between the measures. Among n synthetic images, h hits are more than chance if P[H >=
h] < 1 - level. H is beta-binomial, which includes the error of a limit from M held-out patients. The recall of the
search is measured on the same run: planted copies of training images are searched in the same way. If the search misses
required plants, there is no conclusion.

Distances to the closest record alone are weak evidence (arXiv 2505.01524); hence null distribution, plants and ratio.
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

Conclusion: TypeAlias = Literal["copies detected", "no copies detected", "cannot conclude"]


def low_pass(images: Tensor, size: int = 32) -> Tensor:
    """Return unit vectors [B,size^2], on the CPU, of shrunken images [B,1,H,W]; the product of two is a correlation."""
    parts = [prepared(block, size).flatten(1).cpu() for block in torch.split(images, 1024)]
    pixels = torch.cat(parts)
    return functional.normalize(pixels - pixels.mean(1, keepdim=True))


@dataclass(frozen=True)
class Searcher:
    """The training images in each measure, and the limit of each measure below which a ratio is a hit."""

    measures: Mapping[str, Embed]
    train: Mapping[str, Tensor]
    neighbours: int
    limits: Mapping[str, float]

    def search(self, images: Tensor) -> pd.DataFrame:
        """Return one row for each image.

        Columns: `ratio NAME` of each measure, the clearest `measure`, its `train` row and `similarity`, and `hit`.
        """
        nearby = [
            isolation(measure(images), self.train[name], self.neighbours) for name, measure in self.measures.items()
        ]
        ratios = np.stack([one.ratio.double().nan_to_num(torch.inf).numpy() for one in nearby], 1)  # [B, measures]
        relative = ratios / np.array([self.limits[name] for name in self.measures])
        clearest, every = relative.argmin(1), np.arange(len(relative))
        columns = {f"ratio {name}": ratios[:, i] for i, name in enumerate(self.measures)}
        columns |= {"measure": np.array(list(self.measures))[clearest]}
        columns |= {"train": np.stack([one.row.numpy() for one in nearby], 1)[every, clearest]}
        columns |= {"similarity": np.stack([one.similarity.double().numpy() for one in nearby], 1)[every, clearest]}
        return pd.DataFrame({**columns, "hit": relative.min(1) < 1})

    def with_limits(self, null: pd.DataFrame, rate: float) -> Searcher:
        """Return a searcher whose limits give the false-positive rate on `null`, rows of `search`."""
        rank = _limit_rank(rate, len(null), len(self.measures))
        limits = {n: max(float(np.sort(null[f"ratio {n}"])[rank - 1]), 1e-6) for n in self.measures}
        return Searcher(self.measures, self.train, self.neighbours, limits)

    def relative(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the ratios of rows of `search` over their limits, of the clearest measure, [B]; a hit is below 1."""
        ratios = rows[[f"ratio {name}" for name in self.limits]].to_numpy(np.float64)
        return np.asarray((ratios / np.array(list(self.limits.values()))).min(1))


def _limit_rank(rate: float, held_out: int, measures: int) -> int:
    """Return the rank k of the limit among `held_out` = n ratios; a new one is below with probability k / (n + 1)."""
    return max(1, int(rate / measures * (held_out + 1) + 1e-9))


@dataclass(frozen=True)
class CopySearch:
    """Result of the search. `images`: one row for each synthetic image (index uid); `plants`: one row for each plant.

    rate: false-positive rate per image under the null; measured: share of held-out patients hit by limits from their
    other half; expected: hits expected by chance among the synthetic images; p: probability of as many hits;
    unmistakable: images whose ratio is below half the lowest of all held-out patients; hidden: the largest share of
    copies that these hits allow; leaning: share of synthetic images nearer to training than to as many held-out images,
    1/2 by chance; missed: required plants with too low a recall.
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
        """Number of synthetic images that are hits."""
        return int(self.images["hit"].sum())

    @property
    def counts(self) -> dict[str, int]:
        """Counts for the record of the audit."""
        return {"hits": self.hits, "synthetic": len(self.images)}

    @property
    def passed(self) -> bool | None:
        """True if no copies were detected, False if some were, None without a conclusion."""
        return {"copies detected": False, "no copies detected": True, "cannot conclude": None}[self.conclusion]

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        numbers = (
            f"{self.hits} of {len(self.images)} synthetic images are nearer to a training image than"
            f" {1 - self.rate:.1%} of the images of {self.held_out} held-out patients, {self.expected:.1f} expected by"
            f" chance (p = {self.p:.2g}), {self.unmistakable} of them unmistakably; measured false-positive rate"
            f" {self.measured}"
        )
        if self.conclusion == "cannot conclude":
            return f"Cannot conclude, because planted copies were missed ({', '.join(self.missed)}): {numbers}"
        if self.conclusion == "copies detected":
            return f"Copies detected: {numbers}"
        return f"No copies detected: {numbers}; up to {self.hidden:.1%} of the images could be undetected copies"


def search_copies(
    embed: Embed, synthetic: Tensor, train: Tensor, held_out: Tensor, plants: Mapping[str, Plant], *,
    uids: Sequence[str], held_out_patients: Sequence[str], seed: int, rate: float = 0.01, planted: int = 200,
    required: Collection[str] | None = None, recall: float = 0.8, level: float = 0.95, neighbours: int = 50,
) -> CopySearch:  # fmt: skip
    """Search synthetic images [n,1,H,W] (of `uids`) for copies of train [N,1,H,W], with held_out [M,1,H,W] as null.

    Images are uint8 or float in [0,1], all of one size and with the same preprocessing. `required`: names of `plants`
    whose recall must be at least `recall` for the conclusion "no copies detected" (default: all); the others are only
    reported. `rate` is the false-positive rate per image; it is raised to what half of the held-out patients can
    resolve. Held-out patients must be sampled like training patients. Raises InputError for fewer than 8 of them, fewer
    than 3 training images, no synthetic image, or names that do not fit.
    """
    of = owners([str(one) for one in held_out_patients])
    _checked(len(set(of.tolist())), len(of), len(held_out), len(train), len(uids), len(synthetic))
    measures: Mapping[str, Embed] = {"embedding": embed, "pixels": low_pass}
    vectors = {name: measure(train) for name, measure in measures.items()}
    without = Searcher(measures, vectors, neighbours, dict.fromkeys(measures, 1.0))
    null = without.search(held_out[torch.from_numpy(_one_each(of, numpy_generator(seed, "copies null")))])
    rate = max(rate, len(measures) / (len(null) // 2 + 1))
    searcher = without.with_limits(null, rate)
    images = searcher.search(synthetic).set_index(pd.Index(uids, name="uid"))
    table = _recalls(searcher, train, plants, required, planted, seed)
    lean = _leaning(embed(synthetic), vectors["embedding"], embed(held_out), numpy_generator(seed, "leaning"))
    measured = _false_positives(without, null, rate, numpy_generator(seed, "copies halves"))
    plain = int((searcher.relative(images) < 0.5 * searcher.relative(null).min()).sum())
    return _concluded(images, table, null, len(measures), rate, measured, plain, lean, recall, level)


def _checked(patients: int, named: int, held_out: int, train: int, uids: int, synthetic: int) -> None:
    """Raise InputError for too few images or patients, and for names that do not fit the images."""
    if named != held_out or uids != synthetic:
        raise InputError(
            f"{named} patients for {held_out} held-out images, {uids} uids for {synthetic} synthetic images;"
            " give one each"
        )
    if patients < 8 or train < 3 or not synthetic:
        raise InputError(
            f"{patients} held-out patients, {train} training and {synthetic} synthetic images are too few to search for"
            " copies; give at least 8, 3 and 1"
        )


def _concluded(
    images: pd.DataFrame, table: pd.DataFrame, null: pd.DataFrame, measures: int, rate: float, measured: Share,
    plain: int, lean: Share, recall: float, level: float,
) -> CopySearch:  # fmt: skip
    """Return the result. Copies are detected if hits are more than chance, or if any is unmistakable."""
    hits, n, m = int(images["hit"].sum()), len(images), len(null)
    k = _limit_rank(rate, m, measures) * measures
    p = float(np.clip(stats.betabinom.sf(hits - 1, n, k, m + 1 - k), 0, 1))
    needed = table.loc[table["required"], "recall"]
    missed = tuple(f"{name}: recall {value:.2f}" for name, value in needed.items() if value < recall)
    hidden = min(1.0, share(hits, n, 2 * level - 1, "exact").high / max(float(needed.min()), 1e-9))
    conclusion: Conclusion = "cannot conclude" if missed or not len(needed) else "no copies detected"
    if p < 1 - level or plain:
        conclusion = "copies detected"
    return CopySearch(images, table, rate, measured, m, n * k / (m + 1), p, plain, hidden, lean, conclusion, missed)


def _one_each(of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one random row of each owner."""
    order = rng.permutation(len(of))
    return np.sort(order[np.unique(of[order], return_index=True)[1]])


def _false_positives(search: Searcher, null: pd.DataFrame, rate: float, rng: np.random.Generator) -> Share:
    """Return the share of held-out patients that are hits, with limits from the other half of them."""
    half = rng.permutation(len(null)) < len(null) // 2
    parts = [search.with_limits(null[half != side], rate).relative(null[half == side]) for side in (True, False)]
    return share(int((np.concatenate(parts) < 1).sum()), len(null))


def _recalls(
    search: Searcher, train: Tensor, plants: Mapping[str, Plant], required: Collection[str] | None, planted: int,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Return one row for each plant: counts, recall with interval, and `named`, the share traced to its own image."""
    rows = numpy_generator(seed, "plants").permutation(len(train))[:planted]
    images = prepared(train[torch.from_numpy(rows)], train.shape[-1])
    out = []
    for name, plant in plants.items():
        result = search.search(plant(images, torch_generator(seed, "plant", name)))
        detected, named = int(result["hit"].sum()), float((result["train"] == rows).mean())
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
