"""Class-balanced training rows: rare findings are drawn more often, a patient at most once a batch where that can be.

n_c is the number of rows known to carry finding c. A finding weighs n_c ** -0.5, or (1 - b) / (1 - b ** n_c), the
inverse of its effective number (arXiv 1901.05555, equation 2). A row weighs as much as its rarest known finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from medlt import chance
from medlt.types import InputError

Rule: TypeAlias = Literal["inverse_sqrt", "effective_number"]
CANDIDATES = 16


def finding_weights(counts: np.ndarray, rule: Rule, b: float = 0.999) -> np.ndarray:
    """Weights, float64, of findings that `counts` rows carry each; 0 for a finding without rows."""
    n = np.asarray(counts, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = n**-0.5 if rule == "inverse_sqrt" else (1 - b) / (1 - b**n)
    return np.where(n > 0, weight, 0.0)


def row_weights(labels: np.ndarray, rule: Rule, b: float = 0.999) -> np.ndarray:
    """Weights [N], mean 1, of rows with labels [N,K]: 1, 0, NaN = unknown; positive from 0.5 upward.

    Rows without a known finding form one more class. A row of which nothing is known weighs 1, as the average row does:
    it neither gains nor loses.
    """
    if rule not in ("inverse_sqrt", "effective_number"):
        raise InputError(f"balance {rule!r} is not known; use inverse_sqrt or effective_number")
    labels = np.asarray(labels, dtype=np.float64)
    positive = np.nan_to_num(labels) >= 0.5
    unknown = np.isnan(labels).all(1)
    without = ~positive.any(1) & ~unknown
    classes = np.column_stack([positive, without])
    weight = (classes * finding_weights(classes.sum(0), rule, b)).max(1)
    if unknown.all():
        return np.ones(len(labels))
    weight[unknown] = weight[~unknown].mean()
    answer: np.ndarray = weight / weight.mean()
    return answer


class Balanced:
    """Rows of training steps, drawn by weight [N] > 0; rows(step, size) is a function of its arguments and the seed.

    `patients`, one a row, are not repeated within a batch while others are left among the step's candidates; without
    them each row is its own patient.
    """

    def __init__(self, weights: np.ndarray, patients: Sequence[str] = (), seed: int = 0) -> None:
        if len(patients) not in (0, len(weights)):
            raise InputError(f"{len(patients)} patients for {len(weights)} rows; give one a row, or none")
        self._edges = np.cumsum(np.asarray(weights, np.float64))
        names: Sequence[object] = patients if len(patients) else range(len(weights))
        self._patient = np.unique(np.asarray(names), return_inverse=True)[1]
        self._seed = seed

    def rows(self, step: int, size: int) -> np.ndarray:
        """Row numbers [size] of this step."""
        u = chance.rng(self._seed, "balanced", step).random(CANDIDATES * size) * self._edges[-1]
        drawn = np.searchsorted(self._edges, u, side="right").clip(max=len(self._edges) - 1)
        first = np.sort(np.unique(self._patient[drawn], return_index=True)[1])
        again = np.setdiff1d(np.arange(len(drawn)), first)
        picked: np.ndarray = drawn[np.concatenate([first, again])[:size]]
        return picked
