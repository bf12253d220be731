"""The figures that benchmarks of long-tailed radiographs publish, with intervals by resampled patients.

| task | figure | of each finding | decision |
|---|---|---|---|
| single-label (Holste et al. 2022, arXiv 2208.13365) | multi-class balanced accuracy | sensitivity | highest score |
| | macro F1 | F1 | highest score |
| multi-label (CXR-LT: arXiv 2310.16112, 2506.07984) | mAP | average precision | |
| | mAUC | area under the ROC curve | |
| | mF1 | F1 | score of 0.5 or more |

A figure is the mean over all findings, or over those of a group: head, medium or tail. A finding without a positive in
the test set has no value and is left out, as in `balanced_accuracy_score` of scikit-learn; its `f1_score` would count
such a finding as 0 if it is predicted. Notation as in `ranking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medlt.metrics.bootstrap import difference, interval
from medlt.metrics.decisions import one_of

SINGLE, MULTI = "single-label", "multi-label"
FIGURES: Mapping[str, Mapping[str, str]] = {
    SINGLE: {"sensitivity": "multi-class balanced accuracy", "F1": "macro F1"},
    MULTI: {"AP": "mAP", "AUROC": "mAUC", "F1": "mF1"},
}
"""Task -> metric of a finding -> name of its mean."""
ALL = "all"
CUT = 0.5
COLUMNS = ("metric", "group", "value", "low", "high", "patients")


def published_decisions(scores: np.ndarray, single: bool) -> np.ndarray:
    """Return 1 where scores [...,N,K] say that a finding is present, else 0, by the rule of the benchmark."""
    return one_of(scores) if single else (np.asarray(scores) >= CUT).astype(np.float64)


def benchmark_values(
    truth: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str],
    findings: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    *,
    single: bool,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return the figures of one arm, the mean over its seeds, with their intervals: COLUMNS.

    truth: [N,K] in {0,1,NaN}; scores: [S,N,K]; patients: [N]; groups: name -> findings.
    """
    table = interval(
        truth, scores, patients, findings, groups=groups, n_bootstrap=n_bootstrap, rng=rng,
        decided=published_decisions(scores, single),
    )  # fmt: skip
    return _figures(table, single)


def benchmark_difference(
    truth: np.ndarray,
    scores: np.ndarray,
    control: np.ndarray,
    patients: Sequence[str],
    findings: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    *,
    single: bool,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return the figures of an arm less those of its control, with intervals: COLUMNS, value the difference.

    Arguments as `benchmark_values`; control: [S,N,K], paired with `scores` by seed.
    """
    both = tuple(published_decisions(one, single) for one in (scores, control))
    table = difference(
        truth, scores, control, patients, findings, groups=groups, n_bootstrap=n_bootstrap, rng=rng,
        decided=(both[0], both[1]),
    )  # fmt: skip
    return _figures(table.assign(value=table["difference"]), single)


def _figures(table: pd.DataFrame, single: bool) -> pd.DataFrame:
    """Return the published figures of a table of `bootstrap` under their published names."""
    names = FIGURES[SINGLE if single else MULTI]
    rows = table[table["metric"].isin(names) & (table["level"] != "finding")]
    rows = rows.assign(metric=rows["metric"].map(names), group=rows["name"].replace("macro", ALL))
    order = {name: place for place, name in enumerate(names.values())}
    return rows.sort_values("metric", key=lambda one: one.map(order), kind="stable")[list(COLUMNS)].reset_index(
        drop=True
    )
