"""Does an image show what its label says? Judged by a classifier that saw neither of its parents.

An image passes when its fold's judge gives its tail finding at least the probability that judges give to half of the
real positives they never saw. Of the candidates of one slot the most convincing that passed everything is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from medlt.checks.folds import Crossfit, Judge, by_fold, crossfit, folds
from medlt.types import Batch, Finding, InputError

__all__ = ["Crossfit", "Judge", "LabelConsistency", "best_of", "crossfit", "folds", "thresholds"]


def thresholds(held_out: pd.DataFrame, labels: pd.DataFrame, quantile: float = 0.5) -> pd.Series:
    """Per finding the `quantile` of held-out probabilities over real positives; NaN where there is no positive.

    held_out: uid x finding, each row from a judge that never saw it (Crossfit.held_out); labels: uid x finding.
    """
    positive = labels.loc[held_out.index, held_out.columns] == 1
    return held_out.where(positive).quantile(quantile).rename("threshold")


@dataclass(frozen=True)
class LabelConsistency:
    """Passes when judge `fold` of the row gives its `finding` at least limits[finding], the `quantile` of positives."""

    judges: Sequence[Judge]
    limits: Mapping[str, float]
    findings: Sequence[str]
    quantile: float = 0.5
    name: ClassVar[str] = "label_consistency"
    passes_above: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> list[Finding]:
        """One Finding an image; batch.rows needs columns `fold` and `finding`."""
        if missing := {"fold", "finding"} - set(batch.rows.columns):
            raise InputError(f"plan rows lack {sorted(missing)}, which the label check needs")
        values = self._values(batch)
        return [
            self._finding(str(uid), str(name), float(value))
            for uid, name, value in zip(batch.rows.index, batch.rows["finding"], values, strict=True)
        ]

    def _values(self, batch: Batch) -> np.ndarray:
        """Probability [B] of each row's own finding, from the judge of its fold."""
        column = np.array([list(self.findings).index(name) for name in batch.rows["finding"]], dtype=np.int64)
        values = np.full(len(batch.rows), np.nan)
        for k, rows, images in by_fold(batch):
            scores = self.judges[k](images).cpu().numpy()
            values[rows] = scores[np.arange(len(rows)), column[rows]]
        return values

    def _finding(self, uid: str, name: str, value: float) -> Finding:
        limit = float(self.limits[name])
        passed = value >= limit
        if np.isnan(limit):
            reason = f"no real positive of {name} to set a limit by"
        else:
            verb = "agrees" if passed else "does not agree"
            share = "half of" if self.quantile == 0.5 else f"{1 - self.quantile:.0%} of"
            reason = f"the judge {verb} that this is {name}: {value:.3f}, {share} real positives reach {limit:.3f}"
        return Finding(self.name, uid, value, limit, passed, reason)


def best_of(rows: pd.DataFrame, findings: Sequence[Finding], by: str = LabelConsistency.name) -> list[Finding]:
    """Rank the candidates of each (finding, slot) that passed every check; only rank 1 passes.

    rows: index uid, columns finding, slot, candidate; findings: what the checks said of them, `by` among them. One
    Finding an eligible image, in the order of rows; value is its rank (ties: the lower candidate first), limit is 1.
    A slot without an eligible candidate keeps none.
    """
    failed = {f.uid for f in findings if not f.passed}
    value = {f.uid: f.value for f in findings if f.check == by}
    slots: dict[tuple[str, int], list[tuple[float, int, str]]] = defaultdict(list)
    for uid, row in rows.iterrows():
        if str(uid) not in failed and str(uid) in value:
            slots[row["finding"], row["slot"]].append((-value[str(uid)], row["candidate"], str(uid)))
    rank = {uid: n for found in slots.values() for n, (_, _, uid) in enumerate(sorted(found), 1)}
    said = {1: "the most convincing candidate of its slot"}
    other = "another candidate of the slot convinced the judge more"
    return [
        Finding("best_of", uid, float(rank[uid]), 1.0, rank[uid] == 1, said.get(rank[uid], other))
        for uid in map(str, rows.index)
        if uid in rank
    ]
