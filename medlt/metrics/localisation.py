"""How well maps find what masks or boxes show: pixel AUROC, pointing game, and share of the lesion in the map.

Notation: B images; m map [B,h,w], larger where the finding is; c covered share of each cell [B,h,w] in [0,1]. A point
of the image is drawn evenly; it lies in the lesion with the probability c of its cell.

| measure | what | closed form |
|---|---|---|
| auroc | a point of the lesion has a larger value than one outside; a tie counts half | sum c (1-c') [m > m'] / norm |
| pointing | the largest value lies on the lesion | share of the maximal cells with c >= TOUCH |
| lesion, area | share of the lesion, and of the image, where m > threshold | sum c [m > threshold] / sum c |
| top | share of the lesion in the 20 % of the image with the largest values; tied cells are taken in equal parts | - |

Chance is 0.5 for auroc, `area` for lesion, 0.2 for top; a constant map has exactly that. Zhang et al., "Top-down Neural
Attention by Excitation Backprop", arXiv 1608.00507, section 4.1 (pointing game); theirs allows 15 pixels of 224, TOUCH
allows less than one cell. A map or a lesion that is unknown (NaN), and an image with no or all cells covered, has no
value. Values are averaged over images, intervals are over patients (`draws`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from medlt.metrics.draws import Spread, patient_weights, spread
from medlt.metrics.ranking import macro
from medlt.types import InputError

MEASURES = ("auroc", "pointing", "lesion", "area", "top")
TOUCH = 0.01
"""Covered share of a cell from which it is on the lesion."""
TOP = 0.2
"""Share of the image that `top` takes."""
LEVEL = 0.95


def measures(maps: np.ndarray, cover: np.ndarray, threshold: float | np.ndarray = 0.5) -> dict[str, np.ndarray]:
    """Return measure -> values [B], NaN where an image has none. maps, cover: [B,h,w]; threshold: one, or one each.

    Raises InputError for shapes that differ.
    """
    maps, cover = (np.asarray(one, np.float64) for one in (maps, cover))
    if maps.shape != cover.shape or maps.ndim != 3:
        raise InputError(f"maps {maps.shape} and covered shares {cover.shape} must have one shape [B,h,w]")
    m, c = (one.reshape(len(one), maps[0].size if len(maps) else 0) for one in (maps, cover))
    limits = np.broadcast_to(np.asarray(threshold, np.float64), len(m))
    values = np.full((len(m), len(MEASURES)), np.nan)
    for i in np.flatnonzero(~np.isnan(m).any(1) & (0 < c.sum(1)) & (c.sum(1) < c.shape[1])):
        taken = m[i] > limits[i]
        lesion = c[i][taken].sum() / c[i].sum()
        values[i] = pixel_auroc(m[i], c[i]), pointing(m[i], c[i]), lesion, taken.mean(), top_share(m[i], c[i])
    return dict(zip(MEASURES, values.T, strict=True))


def pixel_auroc(m: np.ndarray, c: np.ndarray) -> float:
    """Return the AUROC of the cells of one map [n] against their covered shares [n]."""
    group = np.unique(m, return_inverse=True)[1]
    inside, outside = np.bincount(group, weights=c), np.bincount(group, weights=1 - c)
    below = np.cumsum(outside) - outside
    return float(np.dot(inside, below + outside / 2) / (inside.sum() * outside.sum()))


def pointing(m: np.ndarray, c: np.ndarray) -> float:
    """Return whether the largest value of one map [n] is on the lesion; of tied ones the share that is."""
    return float((c[m == m.max()] >= TOUCH).mean())


def top_share(m: np.ndarray, c: np.ndarray, share: float = TOP) -> float:
    """Return how much of the lesion lies in the `share` of cells [n] with the largest values."""
    wanted = share * len(m)
    group = np.unique(-m, return_inverse=True)[1]
    size, lesion = np.bincount(group), np.bincount(group, weights=c)
    before = np.cumsum(size) - size
    taken = np.clip((wanted - before) / size, 0, 1)
    return float(np.dot(taken, lesion) / lesion.sum())


def mean_interval(
    values: np.ndarray, patients: Sequence[str], n_bootstrap: int, rng: np.random.Generator, level: float = LEVEL
) -> tuple[float, Spread]:
    """Return the mean of the values [B] that are known, and its interval over patients; NaN without a value."""
    return macro_interval([(values, patients)], n_bootstrap, rng, level)


def macro_interval(
    groups: Sequence[tuple[np.ndarray, Sequence[str]]], n_bootstrap: int, rng: np.random.Generator, level: float = LEVEL
) -> tuple[float, Spread]:
    """Return the mean over groups of the mean of their known values, and its interval over patients.

    groups: values [B] and patients [B] of each finding; one without a known value is left out. A draw resamples the
    patients of all groups at once; a group that it misses is left out of it.
    """
    known = [_known(values, owners) for values, owners in groups]
    known = [(values, owners) for values, owners in known if len(values)]
    if not known:
        return float("nan"), Spread()
    weights = patient_weights(np.concatenate([owners for _, owners in known]).tolist(), n_bootstrap, rng)
    parts = np.split(weights, np.cumsum([len(values) for values, _ in known])[:-1], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.stack([part @ values / part.sum(1) for (values, _), part in zip(known, parts, strict=True)], axis=1)
    point = np.array([np.mean([values.mean() for values, _ in known])])
    return float(point[0]), spread(point, macro(drawn)[:, None], np.zeros(n_bootstrap), level)


def _known(values: np.ndarray, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that are known, and their patients."""
    values = np.asarray(values, np.float64)
    return values[~np.isnan(values)], np.asarray(patients, dtype=str)[~np.isnan(values)]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's correlation of the pairs [B] that are known; NaN for fewer than three, or for equal values."""
    a, b = (np.asarray(one, np.float64) for one in (a, b))
    known = ~(np.isnan(a) | np.isnan(b))
    if known.sum() < 3:
        return float("nan")
    x, y = (rankdata(one[known]) for one in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")


def correlation_interval(
    a: np.ndarray, b: np.ndarray, patients: Sequence[str], n_bootstrap: int, rng: np.random.Generator,
    level: float = LEVEL,
) -> tuple[float, Spread]:  # fmt: skip
    """Return `rank_correlation` and its interval over patients [B]."""
    a, b = (np.asarray(one, np.float64) for one in (a, b))
    point = rank_correlation(a, b)
    if np.isnan(point):
        return point, Spread()
    weights = patient_weights(patients, n_bootstrap, rng)
    drawn = [rank_correlation(np.repeat(a, one), np.repeat(b, one)) for one in weights]
    return point, spread(np.array([point]), np.array(drawn)[:, None], np.zeros(n_bootstrap), level)
