"""Class-balanced training rows: rare findings are drawn more often, and a patient at most once per batch if possible.

n_c is the number of rows with finding c. The weight of a finding is n_c ** -0.5, or (1 - b) / (1 - b ** n_c), the
inverse of its effective number (arXiv 1901.05555, equation 2). The weight of a row is that of its rarest known finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from medlt.rng import numpy_generator
from medlt.types import InputError

Rule: TypeAlias = Literal["inverse_sqrt", "effective_number"]
CANDIDATES = 16


def finding_weights(counts: np.ndarray, rule: Rule, b: float = 0.999) -> np.ndarray:
    """Return weights, float64, of findings with `counts` rows each; 0 for a finding without rows."""
    n = np.asarray(counts, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = n**-0.5 if rule == "inverse_sqrt" else (1 - b) / (1 - b**n)
    return np.where(n > 0, weight, 0.0)


def row_weights(labels: np.ndarray, rule: Rule, b: float = 0.999) -> np.ndarray:
    """Return weights [N], mean 1, of rows with labels [N,K]: 1, 0, NaN = unknown; positive from 0.5 upward.

    Rows without a known finding form one more class. A row without any known label has weight 1, the average.
    """
    if rule not in ("inverse_sqrt", "effective_number"):
        raise InputError(f"balance: unknown rule {rule!r}; use inverse_sqrt or effective_number")
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
    """Sampler of training rows by weight [N] > 0. rows(step, size) depends on its arguments and the seed only.

    A batch repeats a patient (`patients`, one per row) only if the candidates of the step contain no other. Without
    `patients` each row counts as its own patient.
    """

    def __init__(self, weights: np.ndarray, patients: Sequence[str] = (), seed: int = 0) -> None:
        if len(patients) not in (0, len(weights)):
            raise InputError(f"{len(patients)} patients for {len(weights)} rows; give one per row, or none")
        self._edges = np.cumsum(np.asarray(weights, np.float64))
        names: Sequence[object] = patients if len(patients) else range(len(weights))
        self._patient = np.unique(np.asarray(names), return_inverse=True)[1]
        self._seed = seed

    def rows(self, step: int, size: int) -> np.ndarray:
        """Return the row numbers [size] of this step."""
        u = numpy_generator(self._seed, "balanced", step).random(CANDIDATES * size) * self._edges[-1]
        drawn = np.searchsorted(self._edges, u, side="right").clip(max=len(self._edges) - 1)
        first = np.sort(np.unique(self._patient[drawn], return_index=True)[1])
        again = np.setdiff1d(np.arange(len(drawn)), first)
        picked: np.ndarray = drawn[np.concatenate([first, again])[:size]]
        return picked
