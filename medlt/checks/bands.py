"""Check whether an image is in the band of its finding: in distribution (ID), approximately so (AID), or out of it
(OOD).

Shao et al., "DiffuLT", NeurIPS 2024, arXiv 2403.05170: in a feature space an image of finding c is ID up to a distance
d_f from the real ones, AID up to 2 d_f, OOD beyond; OOD images harm the classifier trained on them.

| form | distance d | limit d_f |
|---|---|---|
| neighbours | mean distance to the k nearest real positives | 95 % quantile of d of real positives not among them |
| centre (published) | distance to the mean of the real positives | largest distance between two real positives |

The maximum is determined by an outlier and grows with the number of images; hence the quantile. Below n = 30
calibrating images it is shrunk towards the shape, not the scale, of the distances of all findings:

    d_f = s q_c + (1 - s) m_c r,    s = min(1, n_c / 30)

| symbol | meaning |
|---|---|
| n_c, m_c, q_c | calibrating images of finding c; median and quantile of their distances |
| r | the same quantile of d / m_c over the calibrating images of all findings |

Of more than MOST images a drawn sample calibrates; all stay in the reference. So the cost of a band is linear in its
positives. The centre form compares all pairs of them in the worst case.

Distances grow with the rarity of a finding, so each finding keeps its own scale; a few images estimate the median well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd
from torch import Tensor

from medlt.checks.folds import by_fold
from medlt.rng import numpy_generator
from medlt.types import Batch, CheckResult, InputError

Features: TypeAlias = Callable[[Tensor], Tensor]
"""Images [B,1,H,W] -> features [B,D]."""

Form: TypeAlias = Literal["neighbours", "centre"]

ENOUGH = 30
MOST = 2000
"""Most images that calibrate a band: of more, a drawn sample, whose 95 % quantile has a rank between 94 and 96 %."""
BLOCK = 256
LEAST = 2
"""Least number of real positives of a band."""


@dataclass(frozen=True)
class Rule:
    """How bands are made; see the module. `k` neighbours, or all there are if fewer."""

    form: Form = "neighbours"
    k: int = 5
    quantile: float = 0.95

    def __post_init__(self) -> None:
        if self.form not in ("neighbours", "centre"):
            raise InputError(f"bands: {self.form!r} is not a form; choose neighbours or centre")
        if self.k < 1 or not 0 < self.quantile <= 1:
            raise InputError(f"bands: k is {self.k}, quantile is {self.quantile}; give k from 1, a quantile in (0, 1]")


PLAIN = Rule()


def neighbour_distance(reference: np.ndarray, points: np.ndarray, k: int = 5, skip: int = 0) -> np.ndarray:
    """Return the mean Euclidean distance [n] of points [n,D] to their k nearest of `reference` [m,D].

    The `skip` nearest do not count: 1 leaves out a point that is itself in the reference. With fewer than k others it
    is the mean of all.
    """
    from sklearn.neighbors import NearestNeighbors

    finder = NearestNeighbors(n_neighbors=min(k + skip, len(reference)), algorithm="brute").fit(reference)
    distance: np.ndarray = finder.kneighbors(points)[0][:, skip:].mean(1)
    return distance


def centre_distance(reference: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the distance [n] of points [n,D] to the mean of `reference` [m,D]."""
    distance: np.ndarray = np.linalg.norm(points - reference.mean(0), axis=1)
    return distance


def widest(reference: np.ndarray) -> float:
    """Return the largest Euclidean distance between two rows of `reference` [m,D].

    Rows are compared from the outermost inwards, and only those that can be farther apart than the widest pair so far:
    two rows are at most as far apart as the sum of their distances to the mean. In the worst case all pairs are.
    """
    from sklearn.metrics import euclidean_distances

    radius, best = centre_distance(reference, reference), 0.0
    order = np.argsort(-radius)
    for start in range(0, len(order), BLOCK):
        outer = order[start : start + BLOCK]
        others = order[start:][radius[order[start:]] + radius[outer[0]] > best]
        if not len(others):
            break
        best = max(best, float(euclidean_distances(reference[outer], reference[others]).max()))
    return best


def _calibrating(count: int) -> np.ndarray:
    """Return the numbers of the images that calibrate a band: all, or MOST of them, drawn by their count alone."""
    if count <= MOST:
        return np.arange(count)
    return np.sort(numpy_generator("bands", count).choice(count, MOST, replace=False))


@dataclass(frozen=True, eq=False)
class Band:
    """The band of one finding in one feature space: real positives [m,D] and the limit d_f, NaN where there is none.

    `calibration` are the distances [n] of the real positives that set d_f.
    """

    reference: np.ndarray
    limit: float
    rule: Rule = PLAIN
    calibration: np.ndarray = field(default_factory=lambda: np.empty(0))

    def value(self, features: np.ndarray) -> np.ndarray:
        """Return d / d_f of features [n,D], [n]; NaN without a limit, and for non-finite features."""
        value, good = np.full(len(features), np.nan), np.isfinite(features).all(1)
        if self.limit > 0 and good.any():
            value[good] = self._distance(features[good].astype(np.float64)) / self.limit
        return value

    def _distance(self, points: np.ndarray) -> np.ndarray:
        if self.rule.form == "centre":
            return centre_distance(self.reference, points)
        return neighbour_distance(self.reference, points, self.rule.k)


def band(reference: np.ndarray, held_out: np.ndarray | None = None, rule: Rule = PLAIN) -> Band:
    """Return the band of one finding by itself, without shrinkage (see `shrunk`).

    reference: features of real positives [m,D]; held_out: of further ones [n,D], or None for leave-one-out. The centre
    form needs none. Fewer than 2 in the reference, or none for calibration, gives no limit. At most MOST calibrate it.
    """
    reference = np.asarray(reference, np.float64)
    if len(reference) < LEAST:
        return Band(reference, np.nan, rule)
    if rule.form == "centre":
        return Band(reference, widest(reference), rule)
    points = None if held_out is None else np.asarray(held_out, np.float64)
    if points is not None and not len(points):
        return Band(reference, np.nan, rule)
    some = reference if points is None else points
    distance = neighbour_distance(reference, some[_calibrating(len(some))], rule.k, skip=points is None)
    return Band(reference, float(np.quantile(distance, rule.quantile)), rule, distance)


def shrunk(bands: Sequence[Band]) -> list[Band]:
    """Return the bands with shrunk limits, see the module.

    Bands of the centre form and bands without a limit do not change.
    """
    middle = [float(np.median(one.calibration)) if len(one.calibration) else np.nan for one in bands]
    ratios = [one.calibration / m for one, m in zip(bands, middle, strict=True) if m > 0]
    if not ratios:
        return list(bands)
    return [_shrink(one, m, np.concatenate(ratios)) for one, m in zip(bands, middle, strict=True)]


def _shrink(one: Band, middle: float, ratios: np.ndarray) -> Band:
    if not middle > 0:
        return one
    share = min(1.0, len(one.calibration) / ENOUGH)
    shape = float(np.quantile(ratios, one.rule.quantile))
    return replace(one, limit=share * one.limit + (1 - share) * middle * shape)


def limits(features: np.ndarray, labels: np.ndarray, rule: Rule = PLAIN) -> np.ndarray:
    """Return d_f of each finding [K], leave-one-out among features [N,D] of rows with labels [N,K]; NaN where
    undefined.
    """
    made = [band(features[column == 1], rule=rule) for column in labels.T]
    return np.array([one.limit for one in shrunk(made)])


def group(value: float) -> str:
    """Return "ID", "AID" or "OOD" for d / d_f; OOD for NaN."""
    return "ID" if value <= 1 else "AID" if value <= 2 else "OOD"


@dataclass(frozen=True, eq=False)
class InBand:
    """Value: d / d_f of an image and its row's `finding`, in the features of the verifier of its row's `fold`.

    features[k] is verifier k, trained without fold k. bands[k][finding] has the real positives of the other folds as
    reference and those of fold k as calibration, so no calibrating image is nearer than an unseen image can be. An
    image passes up to `limit`: 2 keeps ID and AID, 1 keeps ID. Without a band it fails, with a reason. Rows need
    columns `finding` and `fold`.
    """

    features: Sequence[Features]
    bands: Sequence[dict[str, Band]]
    limit: float = 2.0
    name: ClassVar[str] = "in_band"
    passes_above: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image. Raises InputError if the rows lack a column."""
        if missing := {"fold", "finding"} - set(batch.rows.columns):
            raise InputError(f"plan rows lack the columns {sorted(missing)}, which the band check needs")
        rows = zip(batch.rows.index, batch.rows["finding"], batch.rows["fold"], self._values(batch), strict=True)
        return [self._result(str(uid), str(name), int(k), float(value)) for uid, name, k, value in rows]

    def _values(self, batch: Batch) -> np.ndarray:
        """Return d / d_f [B] in the order of the batch."""
        names, values = batch.rows["finding"].to_numpy(), np.full(len(batch.rows), np.nan)
        for k, rows, images in by_fold(batch):
            seen = self.features[k](images).float().cpu().numpy()
            for name in np.unique(names[rows]):
                mine = names[rows] == name
                if (known := self.bands[k].get(str(name))) is not None:
                    values[rows[mine]] = known.value(seen[mine])
        return values

    def _result(self, uid: str, name: str, fold: int, value: float) -> CheckResult:
        reason = f"{group(value)}: {value:.2f} times the distance limit of real {name}"
        if np.isnan(value):
            known = self.bands[fold].get(name)
            few = known is None or not known.limit > 0
            reason = f"no band for {name} in its fold: too few real positives" if few else "features are not finite"
        return CheckResult(self.name, uid, value, self.limit, value <= self.limit, reason)


def in_band(
    features: Sequence[Features],
    images: Callable[[Sequence[str]], Tensor],
    fold: pd.Series,
    labels: pd.DataFrame,
    findings: Iterable[str],
    *,
    rule: Rule = PLAIN,
    limit: float = 2.0,
) -> InBand:
    """Return the check from real train rows. fold: uid -> 0..k-1, one of `features` each; labels: uid x finding, 1 / 0
    / NaN.

    images(uids) -> [n,1,H,W]; it is called for positives of `findings`, those with a target. Limits are shrunk over all
    folds and findings together. Raises InputError if folds and features differ in number.
    """
    if len(features) != int(fold.max()) + 1:
        raise InputError(f"{len(features)} verifiers for {int(fold.max()) + 1} folds; give one verifier for each fold")
    names, keys, made = list(findings), [], []
    positive = labels.loc[fold.index, names] == 1
    uids = [str(uid) for uid in fold.index[positive.any(axis=1)]]
    for k, extract in enumerate(features):
        seen = pd.DataFrame(_seen(extract, images, uids), index=uids)
        for name in names:
            has = positive.index[positive[name]]
            own = fold.loc[has].to_numpy() == k
            keys.append((k, name))
            made.append(band(seen.loc[has[~own]].to_numpy(), seen.loc[has[own]].to_numpy(), rule))
    bands = dict(zip(keys, shrunk(made), strict=True))
    return InBand(features, [{name: bands[k, name] for name in names} for k in range(len(features))], limit)


def _seen(
    extract: Features, images: Callable[[Sequence[str]], Tensor], uids: Sequence[str], chunk: int = 256
) -> np.ndarray:
    """Return features float32 [n,D] of these images, a few hundred at a time."""
    parts = [extract(images(uids[i : i + chunk])).float().cpu().numpy() for i in range(0, len(uids), chunk)]
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
