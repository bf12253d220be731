"""The lower bound against the paper's printed values, closed forms, and mechanisms whose epsilon is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from medlt.privacy.audit.canary import CanaryTest, canaries, canary_test, epsilon_lower_bound, guesses, p_value
from medlt.types import InputError


@pytest.mark.parametrize(
    ("m", "made", "correct", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_published_values(m: int, made: int, correct: int, delta: float, printed: float) -> None:
    """arXiv 2305.08846, Appendix D and section 7 (the second printed cut off, not rounded)."""
    assert epsilon_lower_bound(correct, made, m, delta) == pytest.approx(printed, abs=1e-3)


@given(st.integers(1, 200), st.floats(0.5, 0.99))
def test_all_right_in_closed_form(m: int, confidence: float) -> None:
    """Without delta P[W >= m] = q^m, so the bound is the logit of (1 - confidence)^(1/m), or 0."""
    q = (1 - confidence) ** (1 / m)
    assert epsilon_lower_bound(m, m, m, 0.0, confidence) == pytest.approx(max(0.0, np.log(q / (1 - q))), abs=1e-6)


@given(st.integers(1, 40), st.integers(0, 40), st.floats(0, 5), st.floats(0, 0.2))
def test_p_value_by_hand(made: int, correct: int, epsilon: float, delta: float) -> None:
    correct, m = min(correct, made), made + 3
    q = 1 / (1 + np.exp(-epsilon))
    mass = [stats.binom.pmf(k, made, q) for k in range(made + 1)]
    alpha = max((sum(mass[correct - i : correct]) / i for i in range(1, correct + 1)), default=0.0)
    assert p_value(correct, made, m, epsilon, delta) == pytest.approx(
        min(1, sum(mass[correct:]) + 2 * m * delta * alpha), rel=1e-9, abs=1e-12
    )


def bounds_of(counts: np.ndarray, m: int, delta: float) -> np.ndarray:
    """The bound for each of these counts of right guesses among m, every canary guessed."""
    values, where = np.unique(counts, return_inverse=True)
    return np.array([epsilon_lower_bound(int(v), m, m, delta) for v in values])[where]


def test_what_reveals_nothing_is_bounded_by_nothing() -> None:
    """Coin-flip guesses refute epsilon = 0 in at most a twentieth of the trainings."""
    rng = np.random.default_rng(0)
    assert (bounds_of(rng.binomial(100, 0.5, 2000), 100, 1e-5) > 0).mean() <= 0.05


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_never_overstated_and_approached(epsilon: float) -> None:
    rng, q = np.random.default_rng(1), 1 / (1 + np.exp(-epsilon))
    few = bounds_of(rng.binomial(200, q, 1000), 200, 0.0)
    many = bounds_of(rng.binomial(50_000, q, 30), 50_000, 0.0)
    assert (few > epsilon).mean() <= 0.06
    assert np.median(few) < np.median(many) < epsilon
    assert np.median(many) > 0.94 * epsilon


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Exact epsilon of a sum of unit vectors under N(0, sigma^2) (Balle & Wang, arXiv 1805.06083, Theorem 8)."""

    def gap(epsilon: float) -> float:
        left = stats.norm.cdf(0.5 / sigma - epsilon * sigma)
        return float(left - np.exp(epsilon) * stats.norm.cdf(-0.5 / sigma - epsilon * sigma) - delta)

    return float(optimize.brentq(gap, 0, 200))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_a_private_sum_keeps_its_ledger(sigma: float) -> None:
    """Orthogonal unit canaries summed with noise, scored by the released sum: the strongest attack there is."""
    epsilon, bounds = gaussian_epsilon(sigma, 1e-5), []
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, sigma, 400)
        coins = canaries(400, (1,), seed).included
        found = canary_test(lambda inside, noise=noise: inside + noise, coins, delta=1e-5, ledger=epsilon)
        assert found.passed is (None if found.ceiling <= epsilon else True)
        bounds.append(found.bound)
    assert np.median(bounds) > 0.15 * epsilon


def test_a_sum_without_noise_breaks_any_ledger() -> None:
    found = canary_test(lambda inside: inside.astype(float), canaries(400, (1,), 0).included, delta=1e-5, ledger=2.0)
    assert found.correct == found.made == 200
    assert found.bound > 4
    assert found.passed is False
    assert "REFUTED" in found.sentence


def test_too_few_canaries_cannot_pass_what_they_could_not_have_refuted() -> None:
    """Eight, all given away, bound epsilon by less than 8 whatever was done: that is no praise of the ledger."""
    coins = canaries(8, (1,), 0).included
    found = canary_test(lambda inside: inside.astype(float), coins, delta=1e-6, ledger=8.0)
    assert found.bound == found.ceiling < 8
    assert found.passed is None


@given(st.integers(0, 100), st.floats(0.1, 3.0))
def test_one_correct_guess_fewer_than_the_least_passes(correct: int, ledger: float) -> None:
    def result(count: int) -> CanaryTest:
        return CanaryTest(200, 100, 100, count, epsilon_lower_bound(count, 100, 200, 1e-6), 1e-6, 0.95, ledger)

    least = result(correct).least
    assert least is not None
    assert result(least).passed is False
    assert result(least - 1).passed is True
    assert f"refuted by {least} correct guesses or more" in result(least - 1).sentence


def test_guesses_are_the_ends_and_the_middle_abstains() -> None:
    inside = np.array([True, False, True, False, False])
    assert guesses(np.array([5.0, 4, 3, 2, 1]), inside, 1, 1) == (2, 2)
    assert guesses(np.array([5.0, 4, 3, 2, 1]), inside, 2, 2) == (3, 4)
    assert guesses(np.array([5.0, 4, 3, 2, 1]), inside, 0, 1) == (1, 1)


def test_canaries_are_signs_with_fair_coins() -> None:
    made = canaries(1000, (2, 4, 4), 3, findings=5, scale=2.0)
    assert set(made.latents.unique().tolist()) == {-2.0, 2.0}
    assert made.labels.shape == (1000, 5)
    assert 430 < made.included.sum() < 570
    assert abs(float(made.latents.mean())) < 0.05
    near = made.latents.flatten(1) @ made.latents.flatten(1).T / 128
    assert float((near - near.diag().diag()).abs().max()) < 1
    again = canaries(1000, (2, 4, 4), 3, findings=5, scale=2.0)
    assert (again.included == made.included).all()
    assert again.latents.equal(made.latents)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: canaries(0, (1,), 0), "0 canaries"),
        (lambda: guesses(np.zeros(3), np.zeros(3, bool), 2, 2), "guesses for 3"),
        (lambda: guesses(np.array([np.nan]), np.zeros(1, bool), 1, 0), "finite"),
        (lambda: epsilon_lower_bound(3, 2, 5, 0.0), "is impossible"),
        (lambda: epsilon_lower_bound(1, 2, 5, 1.0), "delta"),
    ],
)
def test_bad_input(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
