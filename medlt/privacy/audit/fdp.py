"""A lower bound on epsilon from the guesses of one training, under the trade-off curve of a Gaussian mechanism.

The bound of `medlt.privacy.audit.canary` holds for every (epsilon, delta) and is loose for a mechanism with Gaussian
noise, as DP-SGD is. This one assumes that the training is mu-Gaussian-DP (Dong, Roth & Su, arXiv 1905.02383) for some
mu, and refutes the mu under which so many correct guesses are improbable (Mahloujifar, Melis & Chaudhuri, Auditing
f-Differential Privacy in One Run, arXiv 2410.22235, Algorithm 3 with abstention). With r guesses of m canaries, c of
them correct, and significance a = 1 - confidence, start at

    R_c = a c / m,   H_c = a (r - c) / m

and for i = c - 1, ..., 0, with g(x) = Phi(Phi^-1(x) - mu),

    H_i = max(H_{i+1}, g(R_{i+1})),   R_i = R_{i+1} + i / (r - i) (H_i - H_{i+1}).

mu is refuted if R_0 + H_0 > r / m. epsilon follows from mu at delta (Balle & Wang, arXiv 1805.06083, Theorem 8).
"""

from __future__ import annotations

import math

from scipy import optimize, special

from medlt.types import InputError

_HIGHEST = 20.0  # largest mu of the search


def refuted(mu: float, correct: int, made: int, m: int, confidence: float = 0.95) -> bool:
    """Return whether `correct` of `made` guesses of m canaries refute mu-Gaussian-DP at this confidence."""
    level = 1 - confidence
    right, wrong = level * correct / m, level * (made - correct) / m
    for i in range(correct - 1, -1, -1):
        lower = max(wrong, float(special.ndtr(special.ndtri(min(right, 1.0)) - mu)))
        right, wrong = right + i / (made - i) * (lower - wrong), lower
    return right + wrong > made / m


def epsilon_of(mu: float, delta: float) -> float:
    """Return the epsilon of mu-Gaussian-DP at delta in (0,1); 0 if delta alone covers it."""

    def gap(epsilon: float) -> float:
        tail = math.exp(epsilon + special.log_ndtr(-epsilon / mu - mu / 2))
        return float(special.ndtr(mu / 2 - epsilon / mu) - tail - delta)

    if mu <= 0 or gap(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(gap, 0.0, mu * mu + 40 * mu + 1))


def gaussian_lower_bound(correct: int, made: int, m: int, delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon refuted by `correct` of `made` guesses of m canaries, for a Gaussian mechanism.

    0 if none is refuted. Raises InputError for counts that do not fit, or delta outside (0,1).
    """
    if not 0 <= correct <= made <= m or not made or not 0 < delta < 1 or not 0 < confidence < 1:
        raise InputError(
            f"{correct} correct of {made} guesses of {m} canaries, delta {delta}, confidence {confidence}; give 0 <="
            " correct <= made <= m, and delta and confidence in (0,1)"
        )
    low, high = 0.0, _HIGHEST
    if not refuted(low, correct, made, m, confidence):
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle, correct, made, m, confidence) else (low, middle)
    return epsilon_of(low, delta)
