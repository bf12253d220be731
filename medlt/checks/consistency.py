"""Check whether an image shows its target finding, by a verifier that was not trained on its parents.

An image passes when the verifier of its fold gives its target finding at least a threshold: the probability that
verifiers give to half of the held-out real positives. Of the candidates of one slot, the one with the highest
probability among those that passed every check is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from medlt.checks.folds import CrossFitClassifiers, Verifier, by_fold, cross_fit, folds
from medlt.types import Batch, CheckResult, InputError

__all__ = ["CrossFitClassifiers", "LabelConsistency", "Verifier", "best_of", "cross_fit", "folds", "thresholds"]


def thresholds(held_out: pd.DataFrame, labels: pd.DataFrame, quantile: float = 0.5) -> pd.Series:
    """Return, per finding, the `quantile` of held-out probabilities over real positives; NaN without a positive.

    held_out: uid x finding, each row from a verifier not trained on it (CrossFitClassifiers.held_out); labels: uid x
    finding.
    """
    positive = labels.loc[held_out.index, held_out.columns] == 1
    return held_out.where(positive).quantile(quantile).rename("threshold")


@dataclass(frozen=True)
class LabelConsistency:
    """Value: the probability of the row's `finding`, by verifier `fold` of the row.

    An image passes at or above limits[finding], the `quantile` of held-out real positives.
    """

    verifiers: Sequence[Verifier]
    limits: Mapping[str, float]
    findings: Sequence[str]
    quantile: float = 0.5
    name: ClassVar[str] = "label_consistency"
    passes_above: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> list[CheckResult]:
        """Return one CheckResult per image; batch.rows needs columns `fold` and `finding`."""
        if missing := {"fold", "finding"} - set(batch.rows.columns):
            raise InputError(f"plan rows lack the columns {sorted(missing)}, which the label check needs")
        values = self._values(batch)
        return [
            self._result(str(uid), str(name), float(value))
            for uid, name, value in zip(batch.rows.index, batch.rows["finding"], values, strict=True)
        ]

    def _values(self, batch: Batch) -> np.ndarray:
        """Return the probability [B] of each row's own finding, from the verifier of its fold."""
        column = np.array([list(self.findings).index(name) for name in batch.rows["finding"]], dtype=np.int64)
        values = np.full(len(batch.rows), np.nan)
        for k, rows, images in by_fold(batch):
            scores = self.verifiers[k](images).cpu().numpy()
            values[rows] = scores[np.arange(len(rows)), column[rows]]
        return values

    def _result(self, uid: str, name: str, value: float) -> CheckResult:
        limit = float(self.limits[name])
        passed = value >= limit
        if np.isnan(limit):
            reason = f"no limit: there is no held-out real positive of {name}"
        else:
            relation = "at or above" if passed else "below"
            share = "half" if self.quantile == 0.5 else f"{1 - self.quantile:.0%}"
            reason = (
                f"the verifier gives {name} {value:.3f}, {relation} the limit {limit:.3f} ({share} of real positives)"
            )
        return CheckResult(self.name, uid, value, limit, passed, reason)


def best_of(rows: pd.DataFrame, results: Sequence[CheckResult], by: str = LabelConsistency.name) -> list[CheckResult]:
    """Rank the candidates of each (finding, slot) that passed every check; only rank 1 passes.

    rows: index uid, columns finding, slot, candidate; results: the check results of these images, `by` among them.
    Returns one CheckResult per eligible image, in the order of rows; value is its rank (ties: the lower candidate
    first), limit is 1. A slot without an eligible candidate keeps none.
    """
    failed = {result.uid for result in results if not result.passed}
    value = {result.uid: result.value for result in results if result.check == by}
    slots: dict[tuple[str, int], list[tuple[float, int, str]]] = defaultdict(list)
    for uid, row in rows.iterrows():
        if str(uid) not in failed and str(uid) in value:
            slots[row["finding"], row["slot"]].append((-value[str(uid)], row["candidate"], str(uid)))
    rank = {uid: n for candidates in slots.values() for n, (_, _, uid) in enumerate(sorted(candidates), 1)}
    first = "the candidate of its slot with the highest probability"
    other = "another candidate of the slot has a higher probability"
    return [
        CheckResult("best_of", uid, float(rank[uid]), 1.0, rank[uid] == 1, first if rank[uid] == 1 else other)
        for uid in map(str, rows.index)
        if uid in rank
    ]
