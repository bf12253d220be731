"""Label errors by rank: is the verifier's probability of a finding lower than that of nearly all real positives?

The n real positives of a finding have probabilities of verifiers that were not trained on them. The limit is the k-th
lowest of them, k = max(1, floor(a (n + 1))), and an image with the label is named below it. If the m images with the
label show it as real positives do, all are exchangeable, and the number named has a beta-binomial distribution,

    P(named = x) = BetaBinomial(x; m, k, n + 1 - k),

whatever the verifier's calibration. So the p value of "more are named than by chance" is exact.
Reference: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World (2005), ch. 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy import stats

from medlt.types import CheckResult

SHARE = 0.05
"""Share of right labels that are named at most; 1 / (n + 1) where n real positives cannot resolve it."""


@dataclass(frozen=True)
class RankLimit:
    """The limit of a finding: the `rank`-th lowest probability of `positives` real ones."""

    limit: float
    rank: int
    positives: int

    def p_value(self, named: int, images: int) -> float:
        """Return the probability that at least `named` of `images` right labels are named."""
        law = stats.betabinom(images, self.rank, self.positives + 1 - self.rank)
        return float(law.sf(named - 1)) if images else 1.0


def rank_limits(held_out: pd.DataFrame, labels: pd.DataFrame, share: float = SHARE) -> dict[str, RankLimit]:
    """Return the limit of each finding with a real positive.

    held_out: uid x finding, each row from a verifier that was not trained on it, NaN where unknown; labels: uid x
    finding, 1 / 0 / NaN.
    """
    limits = {}
    for name in held_out.columns:
        values = np.sort(held_out.loc[labels.loc[held_out.index, name] == 1, name].dropna().to_numpy(np.float64))
        if len(values):
            rank = max(1, int(share * (len(values) + 1) + 1e-9))
            limits[str(name)] = RankLimit(float(values[rank - 1]), rank, len(values))
    return limits


@dataclass(frozen=True)
class LabelRank:
    """Name the positive labels that a verifier contradicts; value: its probability of the finding."""

    limits: Mapping[str, RankLimit]
    name: ClassVar[str] = "label_consistency"

    def __call__(self, scores: pd.DataFrame, labels: pd.DataFrame) -> list[tuple[str, CheckResult]]:
        """Return (finding, result) for each label of 0.5 or more with a limit and a score.

        scores: uid x finding, NaN where the verifier does not know the finding; labels: of the same uids.
        """
        out = []
        for name, known in self.limits.items():
            has = labels[name].loc[scores.index] >= 0.5
            for uid, value in scores.loc[has, name].dropna().items():
                out.append((name, self._result(str(uid), name, float(value), known)))
        return out

    def _result(self, uid: str, name: str, value: float, known: RankLimit) -> CheckResult:
        passed = value >= known.limit
        lower = f"{known.positives + 1 - known.rank} of {known.positives} real positives have {known.limit:.3f} or more"
        reason = "" if passed else f"labelled {name}, but the verifier gives it {value:.3f}; {lower}"
        return CheckResult(self.name, uid, value, known.limit, passed, reason)
