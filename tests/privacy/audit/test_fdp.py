"""The bound for Gaussian mechanisms: closed forms, known mechanisms, and the bound that assumes nothing."""

import numpy as np
import pytest
from scipy import stats

from medlt.privacy.audit.canary import canary_test, epsilon_lower_bound
from medlt.privacy.audit.fdp import epsilon_of, gaussian_lower_bound, refuted
from medlt.types import InputError


@pytest.mark.parametrize(("mu", "delta"), [(0.3, 1e-5), (1.0, 1e-5), (3.0, 1e-3)])
def test_epsilon_is_where_the_privacy_profile_is_delta(mu: float, delta: float) -> None:
    """The supremum over sets of P(S) - e^eps Q(S) for N(mu,1) and N(0,1), by integration on a grid."""
    epsilon, x = epsilon_of(mu, delta), np.linspace(-12, 15, 400_001)
    excess = np.clip(stats.norm.pdf(x, mu) - np.exp(epsilon) * stats.norm.pdf(x), 0, None)
    assert np.trapezoid(excess, x) == pytest.approx(delta, rel=1e-3)
    assert epsilon_of(0.0, delta) == 0


def test_one_guess_of_one_canary_in_closed_form() -> None:
    """A right guess has probability at most Phi(mu / 2): R_0 + H_0 = a + Phi(Phi^-1(a) - mu), which is at most 1."""
    for mu in (0.0, 1.0):
        for confidence in (0.3, 0.6, 0.95):
            a = 1 - confidence
            by_hand = a + stats.norm.cdf(stats.norm.ppf(a) - mu) > 1
            assert refuted(mu, 1, 1, 1, confidence) is bool(by_hand)


def guessed(mu: float, m: int, rng: np.random.Generator) -> tuple[int, int]:
    """Correct guesses and guesses of m canaries, each released with unit noise, as a mu-Gaussian-DP sum does."""
    inside = rng.random(m) < 0.5
    order, k = np.argsort(-(inside * mu + rng.normal(size=m))), m // 4
    return int(inside[order[:k]].sum() + (~inside[order[-k:]]).sum()), 2 * k


@pytest.mark.parametrize(("mu", "m"), [(0.0, 100), (0.6, 200), (1.5, 200)])
def test_a_gaussian_mechanism_is_never_overstated_and_better_bounded(mu: float, m: int) -> None:
    rng, true = np.random.default_rng(0), epsilon_of(mu, 1e-5)
    counts = [guessed(mu, m, rng) for _ in range(100)]
    bounds = np.array([gaussian_lower_bound(c, r, m, 1e-5) for c, r in counts])
    assert (bounds > true).mean() <= 0.05
    if mu:
        assert np.median(bounds) > 1.3 * np.median([epsilon_lower_bound(c, r, m, 1e-5) for c, r in counts])


def test_the_canary_test_has_both_bounds_and_what_it_could_have_shown() -> None:
    inside = np.arange(200) % 2 == 0
    result = canary_test(lambda included: included * 1.0, inside, delta=1e-6, ledger=8.0)
    assert result.gaussian == pytest.approx(gaussian_lower_bound(100, 100, 200, 1e-6))
    assert result.gaussian is not None
    assert result.gaussian > result.bound
    assert "if it is a Gaussian mechanism" in result.sentence
    assert "a larger epsilon cannot be detected" in result.sentence
    assert canary_test(lambda included: included * 1.0, inside, delta=0.0).gaussian is None


def test_counts_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="3 correct of 2 guesses"):
        gaussian_lower_bound(3, 2, 5, 1e-5)
