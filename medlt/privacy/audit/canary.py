"""A lower bound on epsilon from one training: canaries put in by coin flips, and how many flips can be guessed after.

Each of m canary patients is in the training with probability 1/2, independently. The trained model scores them; the
auditor guesses the k+ of highest score to be in, the k- of lowest to be out, and abstains from the rest. If the
training is (epsilon, delta)-DP, v correct among r = k+ + k- guesses is improbable for large v (Steinke, Nasr &
Jagielski, Privacy Auditing with One (1) Training Run, arXiv 2305.08846, Theorem 5.2):

    P[at least v correct] <= beta + 2 m delta alpha,   q = e^epsilon / (e^epsilon + 1),
    beta = P[W >= v],   alpha = max_{1 <= i <= v} P[v - i <= W < v] / i,   W ~ Binomial(r, q).

The largest epsilon for which this is below 1 - confidence is refuted, so the true one is above it. The bound says
nothing from above: 0 means that this attack learnt nothing, not that there is nothing to learn. k+ and k- are chosen
before the scores are seen; a bound taken as the best of several choices is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from medlt.privacy.ledger import format_epsilon
from medlt.rng import numpy_generator, torch_generator
from medlt.types import InputError

_HIGHEST = 100.0  # epsilon beyond which nothing is looked for

Train: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Which canaries are in, bool [m] -> the trained model's score of each, [m]; higher means rather in."""


@dataclass(frozen=True)
class Canaries:
    """`latents` float32 [m,...], `labels` float32 [m,K] in {0,1}, and `included` bool [m], a fair coin each."""

    latents: Tensor
    labels: Tensor
    included: np.ndarray


def canaries(m: int, shape: tuple[int, ...], seed: int, findings: int = 0, scale: float = 1.0) -> Canaries:
    """Return patients as unlike any real one as can be: latents of independent random signs times `scale`, labels by
    coin.

    Every element at the standard deviation of real (standardised) latents, none predictable from its neighbours, so
    that all that a model knows of one it learnt from that one. Labels are mixed, for a model told what to make.
    """
    if m < 1:
        raise InputError(f"{m} canaries; one is the least, and some hundreds are needed for a bound above 1")
    draw = torch_generator(seed, "canaries")
    signs = torch.randint(0, 2, (m, *shape), generator=draw).float() * 2 - 1
    labels = torch.randint(0, 2, (m, findings), generator=draw).float()
    return Canaries(scale * signs, labels, numpy_generator(seed, "canary coins").random(m) < 0.5)


def guesses(scores: np.ndarray, included: np.ndarray, k_plus: int, k_minus: int) -> tuple[int, int]:
    """Return (correct, made): the k_plus highest of scores [m] guessed in, the k_minus lowest out. Ties fall by
    position.

    Raises InputError where more guesses than canaries are asked for, or a score is not finite.
    """
    scores, included = np.asarray(scores, np.float64), np.asarray(included, bool)
    if scores.shape != included.shape or not np.isfinite(scores).all():
        raise InputError(f"scores {scores.shape} of canaries {included.shape} must be one finite number each")
    if min(k_plus, k_minus) < 0 or not 0 < k_plus + k_minus <= len(scores):
        raise InputError(f"{k_plus} + {k_minus} guesses of {len(scores)} canaries; make at least 1 and at most as many")
    order = np.argsort(-scores, kind="stable")
    right = included[order[:k_plus]].sum() + (~included[order[len(order) - k_minus :]]).sum()
    return int(right), k_plus + k_minus


def p_value(correct: int, made: int, m: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of `correct` or more of `made` guesses of m canaries under (epsilon, delta)-DP."""
    q = 1 / (1 + np.exp(-epsilon))
    beta = stats.binom.sf(correct - 1, made, q)
    if not correct or not delta:
        return float(beta)
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), made, q))  # P[v - i <= W < v], i = 1..v
    return float(min(1.0, beta + 2 * m * delta * (below / np.arange(1, correct + 1)).max()))


def epsilon_lower_bound(correct: int, made: int, m: int, delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon refuted at `confidence` by `correct` of `made` guesses of m canaries; 0 where none is.

    Raises InputError for counts that do not fit each other, delta outside [0,1) or confidence outside (0,1).
    """
    if not 0 <= correct <= made <= m or not made:
        raise InputError(f"{correct} correct of {made} guesses of {m} canaries cannot be; count them again")
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
    """What one training gave away of its canaries: epsilon is at least `bound`, at `confidence`."""

    m: int
    included: int
    made: int
    correct: int
    bound: float
    delta: float
    confidence: float
    ledger: float | None = None

    @property
    def passed(self) -> bool | None:
        """False: the ledger is refuted. True: it could have been, and was not. None: so few canaries could not."""
        if self.ledger is None or (self.bound <= self.ledger and self.ceiling <= self.ledger):
            return None
        return self.bound <= self.ledger

    @property
    def ceiling(self) -> float:
        """The bound if every guess had been right: what this test could have shown at most."""
        return epsilon_lower_bound(self.made, self.made, self.m, self.delta, self.confidence)

    @property
    def sentence(self) -> str:
        """The result in words."""
        held = "" if self.ledger is None else f"; the ledger says at most {format_epsilon(self.ledger)}"
        broken = ", WHICH IS REFUTED" if self.passed is False else ""
        return (
            f"{self.correct} of {self.made} guesses on {self.m} canaries were right: epsilon is at least"
            f" {self.bound:.2f} at {self.confidence:.0%} confidence and delta {self.delta:g}{held}{broken}"
            f" (all right would have shown {self.ceiling:.2f})"
        )


def canary_test(
    train: Train, included: np.ndarray, *, delta: float, share: float = 0.5, confidence: float = 0.95,
    ledger: float | None = None,
) -> CanaryTest:  # fmt: skip
    """Train once with the canaries that are `included`, score all, and bound epsilon from below.

    share: of the canaries that are guessed at all, half of these in and half out, fixed before the training. `delta`
    and `ledger` are those of the training under test, per canary: one canary is one patient.
    """
    included = np.asarray(included, bool)
    m, k = len(included), max(1, round(len(included) * share / 2))
    correct, made = guesses(train(included), included, k, k)
    bound = epsilon_lower_bound(correct, made, m, delta, confidence)
    return CanaryTest(m, int(included.sum()), made, correct, bound, delta, confidence, ledger)
