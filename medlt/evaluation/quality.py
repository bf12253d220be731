"""Measure fidelity, diversity and rarity of synthetic images, per finding and overall.

Real images are held out: neither the method nor the feature extractor was fitted to them. Per finding, its real
positives are compared with the synthetic images made for it; overall (`finding` = "overall"), all real images with any
of the findings are compared with all synthetic ones. Features are scaled by mean and sd of all given real rows.

| metric | what | better |
|---|---|---|
| KID, KID sd | kernel distance, unbiased, and its jackknife standard error | 0 |
| FID | Frechet distance of these features | 0 |
| precision, recall, density, coverage | overlap of the balls, k = 5 | 1 |
| AvgkNN, LOF | distance to 5, isolation among 20 real neighbours, mean over samples | as real |
| rarity, rarity outside | mean Rarity score inside the real balls, k = 3, and the share outside | - |

FID of few samples is large whatever the images: equal Gaussians of 32 dimensions are 24 apart with 25 samples each and
0.6 with 1,000. KID is the main measure; compare FID at equal counts only. A value with too few rows is NaN and `reason`
explains it: balls need k + 1 rows, KID needs 10 rows of either, FID needs 2. Most metrics compare all pairs, so of more
than MOST rows of a side, MOST are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from medlt.metrics.features import pair, scaled
from medlt.metrics.fidelity import frechet, kid
from medlt.metrics.manifold import prdc
from medlt.metrics.rarity import avg_knn, lof, rarity_summary
from medlt.rng import numpy_generator
from medlt.types import InputError

FEWEST_FOR_KID = 10
MOST = 5000
OVERALL = "overall"
COLUMNS = ("finding", "metric", "value", "n_real", "n_synthetic", "reason")
Values = Callable[[np.ndarray, np.ndarray], Sequence[float]]


def _kid(real: np.ndarray, synthetic: np.ndarray) -> tuple[float, float]:
    distance = kid(*pair(real, synthetic, "KID", FEWEST_FOR_KID, FEWEST_FOR_KID))
    return distance.value, distance.sd


METRICS: tuple[tuple[tuple[str, ...], Values], ...] = (
    (("KID", "KID sd"), _kid),
    (("FID",), lambda real, synthetic: [frechet(real, synthetic)]),
    (("precision", "recall", "density", "coverage"), lambda real, synthetic: list(prdc(real, synthetic).values())),
    (("AvgkNN",), lambda real, synthetic: [float(avg_knn(real, synthetic).mean())]),
    (("LOF",), lambda real, synthetic: [float(lof(real, synthetic).mean())]),
    (("rarity", "rarity outside"), rarity_summary),
)


def _measured(real: np.ndarray, synthetic: np.ndarray) -> Iterator[tuple[str, float, str]]:
    """Yield (metric, value, reason) of two sets of features; NaN with a reason for too few rows."""
    for names, values in METRICS:
        try:
            measured, reason = values(real, synthetic), ""
        except InputError as error:
            measured, reason = [float("nan")] * len(names), str(error)
        yield from ((name, value, reason or _why(value)) for name, value in zip(names, measured, strict=True))


def _why(value: float) -> str:
    return "every sample lies outside all real balls" if np.isnan(value) else ""


def quality(
    real: np.ndarray, labels: np.ndarray, synthetic: np.ndarray, made_for: Sequence[str], findings: Sequence[str]
) -> pd.DataFrame:
    """Return the table above: columns finding, metric, value, n_real, n_synthetic, reason ("" or why value is NaN).

    n_real and n_synthetic are the numbers of rows that the value was computed from.

    real: features [N,D] of held-out real images with labels [N,K] (1/0/NaN, columns `findings`); synthetic: features
    [M,D] by the same extractor, row i made for the finding made_for[i]. Findings without synthetic images are absent.
    Raises InputError for features that are not finite tables of one width, and for counts or names that do not match.
    """
    _check(real, labels, synthetic, made_for, findings)
    first, second = scaled(real, synthetic)
    target = np.asarray(made_for)
    wanted = [k for k, name in enumerate(findings) if (target == name).any()]
    positive = np.asarray(labels) == 1
    sets = {findings[k]: (first[positive[:, k]], second[target == findings[k]]) for k in wanted}
    sets[OVERALL] = first[positive[:, wanted].any(1)], second
    drawn = {name: (_drawn(some), _drawn(others)) for name, (some, others) in sets.items()}
    made = [
        (name, metric, value, len(some), len(others), reason)
        for name, (some, others) in drawn.items()
        for metric, value, reason in _measured(some, others)
    ]
    return pd.DataFrame(made, columns=list(COLUMNS))


def _drawn(rows: np.ndarray) -> np.ndarray:
    """Return all rows, or MOST of them in their order, drawn by their number alone."""
    if len(rows) <= MOST:
        return rows
    return rows[np.sort(numpy_generator("quality", len(rows)).choice(len(rows), MOST, replace=False))]


def _check(
    real: np.ndarray, labels: np.ndarray, synthetic: np.ndarray, made_for: Sequence[str], findings: Sequence[str]
) -> None:
    pair(real, synthetic, "a comparison", 2, 1)
    if np.shape(labels) != (len(real), len(findings)):
        raise InputError(f"labels have shape {np.shape(labels)}; give [{len(real)},{len(findings)}], a row an image")
    if len(made_for) != len(synthetic):
        raise InputError(f"{len(synthetic)} synthetic rows but {len(made_for)} entries of made_for; give one each")
    if strange := set(made_for) - set(findings):
        raise InputError(
            f"synthetic rows were made for {sorted(strange)[0]!r}, which is not a finding; check its spelling"
        )
