"""Are the synthetic images like real ones, as varied, and as rare? One table, per finding and overall.

Real images are held out: neither the method nor the feature extractor was fitted to them. For a finding its real
positives stand against the synthetic images made for it; overall (`finding` = "overall") all real ones that have any of
the findings against all synthetic ones. Features are scaled by mean and sd of all real rows given.

| metric | what | better |
|---|---|---|
| KID, KID sd | kernel distance, unbiased, and its jackknife standard error | 0 |
| FID | Frechet distance of these features | 0 |
| precision, recall, density, coverage | overlap of the balls, k = 5 | 1 |
| AvgkNN, LOF | distance to 5, isolation among 20 real neighbours, mean over samples | as real |
| rarity, rarity outside | mean Rarity score inside the real balls, k = 3, and the share outside | - |

FID of few samples is large whatever the images: equal Gaussians of 32 dimensions are 24 apart with 25 samples each and
0.6 with 1,000. KID leads; FID is there to be compared at equal counts. A value that too few rows allow is NaN, and
`reason` says which: balls need k + 1 rows, KID is not told below 10 of either, FID not below 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from medlt.metrics.features import pair, scaled
from medlt.metrics.fidelity import frechet, kid
from medlt.metrics.manifold import prdc
from medlt.metrics.rarity import avg_knn, lof, rarity_summary
from medlt.types import InputError

FEWEST_FOR_KID = 10
OVERALL = "overall"
COLUMNS = ("finding", "metric", "value", "n_real", "n_synthetic", "reason")
Values = Callable[[np.ndarray, np.ndarray], Sequence[float]]


def _kid(real: np.ndarray, synthetic: np.ndarray) -> tuple[float, float]:
    found = kid(*pair(real, synthetic, "KID", FEWEST_FOR_KID, FEWEST_FOR_KID))
    return found.value, found.sd


METRICS: tuple[tuple[tuple[str, ...], Values], ...] = (
    (("KID", "KID sd"), _kid),
    (("FID",), lambda real, synthetic: [frechet(real, synthetic)]),
    (("precision", "recall", "density", "coverage"), lambda real, synthetic: list(prdc(real, synthetic).values())),
    (("AvgkNN",), lambda real, synthetic: [float(avg_knn(real, synthetic).mean())]),
    (("LOF",), lambda real, synthetic: [float(lof(real, synthetic).mean())]),
    (("rarity", "rarity outside"), rarity_summary),
)


def _measured(real: np.ndarray, synthetic: np.ndarray) -> Iterator[tuple[str, float, str]]:
    """(metric, value, reason) of two sets of features; NaN and why, where there are too few rows."""
    for names, values in METRICS:
        try:
            found, reason = values(real, synthetic), ""
        except InputError as error:
            found, reason = [float("nan")] * len(names), str(error)
        yield from ((name, value, reason or _why(value)) for name, value in zip(names, found, strict=True))


def _why(value: float) -> str:
    return "every sample lies outside all real balls" if np.isnan(value) else ""


def quality(
    real: np.ndarray, labels: np.ndarray, synthetic: np.ndarray, made_for: Sequence[str], findings: Sequence[str]
) -> pd.DataFrame:
    """The table above: columns finding, metric, value, n_real, n_synthetic, reason ("" or why the value is NaN).

    real: features [N,D] of held-out real images with labels [N,K] (1/0/NaN, columns `findings`); synthetic: features
    [M,D] by the same extractor, row i made for the finding made_for[i]. Findings that nothing was made for are absent.
    Raises InputError for features that are no finite tables of one width, or counts and names that do not fit.
    """
    _check(real, labels, synthetic, made_for, findings)
    first, second = scaled(real, synthetic)
    target = np.asarray(made_for)
    wanted = [k for k, name in enumerate(findings) if (target == name).any()]
    positive = np.asarray(labels) == 1
    sets = {findings[k]: (first[positive[:, k]], second[target == findings[k]]) for k in wanted}
    sets[OVERALL] = first[positive[:, wanted].any(1)], second
    made = [
        (name, metric, value, len(some), len(others), reason)
        for name, (some, others) in sets.items()
        for metric, value, reason in _measured(some, others)
    ]
    return pd.DataFrame(made, columns=list(COLUMNS))


def _check(
    real: np.ndarray, labels: np.ndarray, synthetic: np.ndarray, made_for: Sequence[str], findings: Sequence[str]
) -> None:
    pair(real, synthetic, "a comparison", 2, 1)
    if np.shape(labels) != (len(real), len(findings)):
        raise InputError(f"labels have shape {np.shape(labels)}; give [{len(real)},{len(findings)}], a row an image")
    if len(made_for) != len(synthetic):
        raise InputError(
            f"{len(synthetic)} synthetic rows but {len(made_for)} findings they were made for; give one each"
        )
    if strange := set(made_for) - set(findings):
        raise InputError(
            f"synthetic rows were made for {sorted(strange)[0]!r}, which is not a finding; check its spelling"
        )
