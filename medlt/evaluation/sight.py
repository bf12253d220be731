"""Whether an experiment can see: what must hold before its interval may be read as a verdict.

Two conditions are about the real arm alone, so they cannot favour an arm with synthetic images. It was trained long
enough (`medlt.evaluation.length`), and its tail AP on the test images is clearly above that of a random order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import digamma

from medlt.evaluation.arms import REAL, ArmScores
from medlt.evaluation.length import TrainingLength
from medlt.metrics.bootstrap import measured
from medlt.metrics.ranking import macro
from medlt.rng import numpy_generator

CANNOT_SEE = "cannot see"
ENDS = (0.025, 0.975)


def random_ap(positives: int, rows: int) -> float:
    """Return the expected AP of a random order of `rows` images, `positives` of them positive, at least one.

    (H + (P - 1) / (N - 1) * (N - H)) / N with the harmonic number H = 1 + 1/2 + ... + 1/N. It is above the prevalence
    P / N, which it approaches as N grows. Place k holds a positive with probability P / N, and its precision is then
    (1 + (k - 1) (P - 1) / (N - 1)) / k on average.
    """
    if rows == 1:
        return 1.0
    harmonic = float(digamma(rows + 1) + np.euler_gamma)
    return (harmonic + (positives - 1) / (rows - 1) * (rows - harmonic)) / rows


@dataclass(frozen=True)
class Margin:
    """Tail macro AP of the real arm on test: value, that of a random order, and value less random with its interval."""

    value: float = math.nan
    random: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def problem(self) -> str:
        """Return why the classifier does not see the tail, and what to change; "" if it does or if nothing is known."""
        if math.isnan(self.difference) or self.low > 0:
            return ""
        ends = "no interval" if math.isnan(self.low) else f"difference [{self.low:+.4f}, {self.high:+.4f}]"
        return (
            f"tail AP of the real arm, {self.value:.4f}, is not clearly above that of a random order, "
            f"{self.random:.4f} ({ends}); raise classifier.size, choose another classifier.network, or take findings "
            "with more positives"
        )


def margin(tested: ArmScores, tail: Sequence[str], *, n_bootstrap: int, seed: int) -> Margin:
    """Return how far tail macro AP of the real arm, mean over seeds, is above a random order, resampling patients.

    A draw compares AP with the prevalence in that draw, which is the AP of equal scores. The bias of a random order is
    a constant. How much whole runs differ is left out: this is about the trained classifiers, not about another run.
    """
    columns = [tested.findings.index(name) for name in tail]
    truth = np.asarray(tested.truth, np.float64)[:, columns]
    counts = [(int((column == 1).sum()), int((~np.isnan(column)).sum())) for column in truth.T]
    orders = [(random_ap(*count), count[0] / count[1]) for count in counts if count[0]]
    if not orders or REAL not in tested.scores:
        return Margin()
    scores, rng = tested.scores[REAL][..., columns], numpy_generator(seed, "above random")
    both = np.stack([scores, np.full_like(scores, 0.5)])
    values = measured(truth, both, None, tested.patients, n_bootstrap, rng)
    at = values.metrics.index("AP")
    (value, prevalence), drawn = macro(values.point[at]).mean(1), macro(values.drawn[at]).mean(1)
    random = float(np.mean(orders, axis=0)[0])
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, ENDS) if 2 * len(known) > len(drawn) else (math.nan, math.nan)
    bias = random - float(prevalence)
    return Margin(float(value), random, float(value) - random, float(low) - bias, float(high) - bias)


@dataclass(frozen=True)
class Sight:
    """What the verdict depends on besides its interval."""

    margin: Margin = Margin()
    length: TrainingLength | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Return the reasons why the experiment cannot see, each with what to type; () if it can."""
        given = (self.length.problem if self.length is not None else "", self.margin.problem)
        return tuple(one for one in given if one)

    def read(self, comparisons: pd.DataFrame) -> pd.DataFrame:
        """Return comparisons with the verdicts that may be read from them: cannot see in every row if there are
        problems.
        """
        return comparisons.assign(verdict=CANNOT_SEE) if self.problems else comparisons

    def record(self) -> dict[str, Any]:
        """Return the entries of verdict.json."""
        numbers = {name: None if math.isnan(value) else value for name, value in vars(self.margin).items()}
        length = None if self.length is None else self.length.record()
        return {"cannot_see": list(self.problems), "above_random": numbers, "training_length": length}
