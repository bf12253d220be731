"""A lower bound on epsilon from one training: insert canaries by coin flips, then guess the flips from the model.

Each of m canary patients is in the training with probability 1/2, independently. The trained model scores them. The
auditor guesses that the k+ with the highest scores are in and the k- with the lowest are out, and omits the rest. If
the training is (epsilon, delta)-DP, v correct among r = k+ + k- guesses is improbable for large v (Steinke, Nasr &
Jagielski, Privacy Auditing with One (1) Training Run, arXiv 2305.08846, Theorem 5.2):

    P[at least v correct] <= beta + 2 m delta alpha,   q = e^epsilon / (e^epsilon + 1),
    beta = P[W >= v],   alpha = max_{1 <= i <= v} P[v - i <= W < v] / i,   W ~ Binomial(r, q).

The largest epsilon for which this is below 1 - confidence is refuted, so the true epsilon is above it. It is no upper
bound: 0 means that this attack learnt nothing, not that no attack can. k+ and k- are chosen before the scores are
known; the best of several choices is not a valid bound.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from medlt.privacy.audit.fdp import gaussian_lower_bound
from medlt.privacy.ledger import format_epsilon
from medlt.rng import numpy_generator, torch_generator
from medlt.types import InputError

_HIGHEST = 100.0  # largest epsilon of the search

Train: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Canaries in the training, bool [m] -> score of each by the trained model, [m]; higher means more likely in."""


@dataclass(frozen=True)
class Canaries:
    """Canary patients: `latents` float32 [m,...], `labels` float32 [m,K] in {0,1}, `included` bool [m], fair coins."""

    latents: Tensor
    labels: Tensor
    included: np.ndarray


def canaries(m: int, shape: tuple[int, ...], seed: int, findings: int = 0, scale: float = 1.0) -> Canaries:
    """Return m canaries: latents of independent random signs times `scale`, and random labels.

    Each element has the standard deviation of real (standardised) latents, and none can be predicted from its
    neighbours. So whatever a model has learnt about a canary comes from this canary. Labels are random for conditional
    models.
    """
    if m < 1:
        raise InputError(f"{m} canaries; give at least 1, and some hundreds for a bound above 1")
    rng = torch_generator(seed, "canaries")
    signs = torch.randint(0, 2, (m, *shape), generator=rng).float() * 2 - 1
    labels = torch.randint(0, 2, (m, findings), generator=rng).float()
    return Canaries(scale * signs, labels, numpy_generator(seed, "canary coins").random(m) < 0.5)


def guesses(scores: np.ndarray, included: np.ndarray, k_plus: int, k_minus: int) -> tuple[int, int]:
    """Return (correct, made) if the k_plus highest of scores [m] are guessed in and the k_minus lowest out.

    Equal scores are ordered by position. Raises InputError for more guesses than canaries, or a score that is not
    finite.
    """
    scores, included = np.asarray(scores, np.float64), np.asarray(included, bool)
    if scores.shape != included.shape or not np.isfinite(scores).all():
        raise InputError(f"scores {scores.shape} of canaries {included.shape} must be one finite number each")
    if min(k_plus, k_minus) < 0 or not 0 < k_plus + k_minus <= len(scores):
        raise InputError(
            f"{k_plus} + {k_minus} guesses for {len(scores)} canaries; make at least 1 and at most one for each"
        )
    order = np.argsort(-scores, kind="stable")
    right = included[order[:k_plus]].sum() + (~included[order[len(order) - k_minus :]]).sum()
    return int(right), k_plus + k_minus


def p_value(correct: int, made: int, m: int, epsilon: float, delta: float) -> float:
    """Return a bound on P[at least `correct` of `made` guesses of m canaries] under (epsilon, delta)-DP."""
    q = 1 / (1 + np.exp(-epsilon))
    beta = stats.binom.sf(correct - 1, made, q)
    if not correct or not delta:
        return float(beta)
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), made, q))  # P[v - i <= W < v], i = 1..v
    return float(min(1.0, beta + 2 * m * delta * (below / np.arange(1, correct + 1)).max()))


def epsilon_lower_bound(correct: int, made: int, m: int, delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon refuted at `confidence` by `correct` of `made` guesses of m canaries; 0 if none is.

    Raises InputError for counts that do not fit, delta outside [0,1) or confidence outside (0,1).
    """
    if not 0 <= correct <= made <= m or not made:
        raise InputError(
            f"{correct} correct of {made} guesses of {m} canaries is impossible; give 0 <= correct <= made <= m"
        )
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise InputError(f"delta {delta} must be in [0,1) and confidence {confidence} in (0,1)")
    low, high = 0.0, _HIGHEST
    if p_value(correct, made, m, low, delta) >= 1 - confidence:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        refuted = p_value(correct, made, m, middle, delta) < 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


@dataclass(frozen=True)
class CanaryTest:
    """Result of a canary test: epsilon is at least `bound`, at `confidence`. `ledger` is the epsilon of the ledger.

    kind: of the canaries.
    gaussian: the bound if the training is a Gaussian mechanism (`medlt.privacy.audit.fdp`), None at delta 0. Subsampled
    steps are so only approximately, hence `passed` is by `bound`.
    """

    m: int
    included: int
    made: int
    correct: int
    bound: float
    delta: float
    confidence: float
    ledger: float | None = None
    gaussian: float | None = None
    kind: str = "canaries"

    @property
    def passed(self) -> bool | None:
        """False if the ledger is refuted, True if it could have been and was not, None if the canaries are too few."""
        if self.ledger is None or (self.bound <= self.ledger and self.ceiling <= self.ledger):
            return None
        return self.bound <= self.ledger

    @property
    def ceiling(self) -> float:
        """The bound if every guess was correct, which is the most that this test can show."""
        return epsilon_lower_bound(self.made, self.made, self.m, self.delta, self.confidence)

    @property
    def least(self) -> int | None:
        """The fewest correct guesses that refute the ledger: the smallest leak that this test detects; None if none."""
        if self.ledger is None or self.ceiling <= self.ledger:
            return None
        counts, ledger = range(self.made + 1), self.ledger
        return bisect.bisect_left(
            counts, True, key=lambda v: epsilon_lower_bound(v, self.made, *self._given) > ledger
        )  # fmt: skip

    @property
    def _given(self) -> tuple[int, float, float]:
        return self.m, self.delta, self.confidence

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        ledger = "" if self.ledger is None else f"; the ledger has {format_epsilon(self.ledger)}"
        refuted = ", WHICH IS REFUTED" if self.passed is False else ""
        most = "" if self.gaussian is None else f", {gaussian_lower_bound(self.made, self.made, *self._given):.2f}"
        beside = "" if self.gaussian is None else f", and {self.gaussian:.2f} if it is a Gaussian mechanism"
        least = "" if self.passed is not True else f"; it would be refuted by {self.least} correct guesses or more"
        return (
            f"{self.correct} of {self.made} guesses on {self.m} {self.kind} were correct: epsilon is at least"
            f" {self.bound:.2f} at {self.confidence:.0%} confidence and delta {self.delta:g}{beside}{ledger}{refuted}"
            f"{least} (if all guesses were correct: {self.ceiling:.2f}{most}; a larger epsilon cannot be detected)"
        )


def canary_test(
    train: Train, included: np.ndarray, *, delta: float, share: float = 0.5, confidence: float = 0.95,
    ledger: float | None = None, kind: str = "canaries",
) -> CanaryTest:  # fmt: skip
    """Train once with the canaries that are `included`, score all, and compute a lower bound of epsilon.

    share: the share of canaries that are guessed, half of them in and half out, fixed before the training. `delta` and
    `ledger` are those of the tested training, per canary: one canary is one patient.
    """
    included = np.asarray(included, bool)
    m, k = len(included), max(1, round(len(included) * share / 2))
    correct, made = guesses(train(included), included, k, k)
    bound = epsilon_lower_bound(correct, made, m, delta, confidence)
    gaussian = gaussian_lower_bound(correct, made, m, delta, confidence) if delta else None
    return CanaryTest(m, int(included.sum()), made, correct, bound, delta, confidence, ledger, gaussian, kind)
