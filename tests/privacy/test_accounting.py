"""What private training costs: against closed forms, published figures and a composition of our own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from medlt.privacy import accounting
from medlt.privacy.accounting import Planned, affordable, calibrate, gaussian, single, spent
from medlt.privacy.limits import delta_violation
from medlt.types import InputError

FEW = settings(max_examples=5)
NOISES, RATES, STEPS = st.floats(0.9, 8), st.floats(0.002, 0.1), st.integers(1, 150)


def delta_of(mu: float, epsilon: float) -> float:
    """Of a Gaussian mechanism, Balle & Wang 2018, theorem 8."""
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu))


def composed(noise: float, rate: float, steps: int, delta: float, added: bool) -> float:
    """Epsilon by sums on a grid: the loss of one step is put into bins and convolved with itself.

    P = (1-q) N(0,s) + q N(1,s), Q = N(0,s); removed: log P/Q under P, added: log Q/P under Q.
    """
    width, half = 2e-4, 1 << 17
    x = np.linspace(-12 * noise, 12 * noise + 1, 400_001)
    q_mass = np.diff(ndtr(x / noise))
    p_mass = (1 - rate) * q_mass + rate * np.diff(ndtr((x - 1) / noise))
    middle = (x[1:] + x[:-1]) / 2
    loss = np.log1p(rate * np.expm1((2 * middle - 1) / (2 * noise**2)))
    mass, loss = (q_mass, -loss) if added else (p_mass, loss)
    bins = np.zeros(2 * half)
    np.add.at(bins, np.round(loss / width).astype(int) % (2 * half), mass)
    total = np.fft.irfft(np.fft.rfft(bins) ** steps).clip(0)
    values = np.fft.fftfreq(2 * half, 1 / (2 * half * width))
    low, high = 0.0, 20.0
    for _ in range(40):
        middle_e = (low + high) / 2
        above = values > middle_e
        lost = float((total[above] * -np.expm1(middle_e - values[above])).sum())
        low, high = (middle_e, high) if lost > delta else (low, middle_e)
    return high


def test_published_figures() -> None:
    published_by_opacus = spent([(1.5, 0.04, 2250)], 1e-5)  # opacus/tests/accountants_test.py, RDP
    assert published_by_opacus.rdp == pytest.approx(7.32911117143, abs=1e-6)
    assert published_by_opacus.epsilon < published_by_opacus.rdp
    abadi = spent([(4.0, 0.01, 10_000)], 1e-5)  # arXiv 1607.00133, section 3.2: 1.26 by the moments accountant
    assert 0.8 < abadi.epsilon < abadi.rdp < 1.26


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 500), (0.8, 0.05, 60), (2.0, 0.2, 100)])
def test_prv_is_the_composition_on_a_grid_and_covers_both_directions(noise: float, rate: float, steps: int) -> None:
    told = spent([(noise, rate, steps)], 1e-5)
    removed, added = (composed(noise, rate, steps, 1e-5, added) for added in (False, True))
    assert told.accountant == "PRV"
    assert max(removed, added) - 0.002 <= told.epsilon <= max(removed, added) + 0.03


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 16), (10.0, 400), (40.0, 3)])
def test_without_sampling_the_closed_form(noise: float, steps: int) -> None:
    told = spent([(noise, 1.0, steps)], 1e-6)
    assert "closed form" in told.accountant
    assert told.epsilon <= told.rdp
    if told.epsilon > 0:
        assert delta_of(math.sqrt(steps) / noise, told.epsilon) == pytest.approx(1e-6, rel=1e-6)
    by_prv = accounting._prv([(noise, 1.0, steps)], 1e-6)
    assert told.epsilon <= by_prv <= told.epsilon + 2 * max(accounting.ERROR, accounting.SHARE * told.rdp)


@FEW
@given(NOISES, RATES)
def test_one_step_is_amplification_by_sampling(noise: float, rate: float) -> None:
    told = spent([(noise, rate, 1)], 1e-6)
    assert single(noise, rate, 1e-6) <= told.epsilon <= single(noise, rate, 1e-6) + 0.03 + 0.01 * told.rdp


def test_a_delta_that_sampling_alone_gives_costs_nothing() -> None:
    assert single(1.0, 0.01, 0.02) == 0
    assert gaussian(0.1, 0.5) == 0


def test_no_steps_cost_nothing_and_no_noise_everything() -> None:
    assert spent([], 1e-6).epsilon == 0
    assert spent([(1.0, 0.1, 0)], 1e-6).epsilon == 0
    assert spent([(0.0, 0.1, 1), (1.0, 0.1, 5)], 1e-6).epsilon == math.inf


@FEW
@given(NOISES, RATES, STEPS, st.floats(1.1, 2))
def test_epsilon_falls_with_noise_and_rises_with_rate_and_steps(
    noise: float, rate: float, steps: int, more: float
) -> None:
    cost = spent([(noise, rate, steps)], 1e-6).epsilon
    slack = 0.02 + 0.004 * cost  # what the error of the accountant may move
    assert spent([(noise * more, rate, steps)], 1e-6).epsilon <= cost + slack
    assert spent([(noise, rate * more, steps)], 1e-6).epsilon >= cost - slack
    assert spent([(noise, rate, math.ceil(steps * more))], 1e-6).epsilon >= cost - slack


@FEW
@given(st.lists(st.tuples(NOISES, RATES, STEPS), min_size=2, max_size=3))
def test_together_costs_at_least_each_and_at_most_the_sum(parts: list[tuple[float, float, int]]) -> None:
    whole = spent(parts, 1e-6)
    each = [spent([part], 1e-6).epsilon for part in parts]
    assert whole.epsilon >= max(each) - 0.02 - 0.004 * whole.rdp
    assert spent(parts, len(parts) * 1e-6).epsilon <= sum(each) + 0.02 + 0.004 * whole.rdp
    assert spent(parts[::-1], 1e-6).epsilon == whole.epsilon


@pytest.mark.parametrize("epsilon", [0.3, 4.0])
def test_calibrated_noise_is_enough_and_a_little_less_is_not(epsilon: float) -> None:
    plans = [Planned(0.02, 100), Planned(0.05, 10, times=2)]

    def cost(noise: float) -> float:
        return spent([(noise, plan.rate, plan.steps * plan.times) for plan in plans], 1e-6).epsilon

    noise = calibrate(plans, epsilon, 1e-6)
    assert cost(noise) <= epsilon < cost(noise * (1 - 1.5e-3))
    assert noise > calibrate([Planned(0.02, 100), Planned(0.05, 10)], epsilon, 1e-6)


def test_calibrated_noise_without_sampling_is_the_closed_form() -> None:
    noise = calibrate([Planned(1.0, 25)], 2.0, 1e-5)
    assert delta_of(5 / noise, 2.0) == pytest.approx(1e-5, rel=0.02)


@pytest.mark.parametrize("before", [(), ((1.2, 0.05, 20),)])
def test_affordable_is_the_last_step_within(before: tuple[tuple[float, float, int], ...]) -> None:
    steps = affordable(1.0, 0.03, 3.0, 1e-6, before)
    within, beyond = (spent([*before, (1.0, 0.03, n)], 1e-6).epsilon for n in (steps, steps + 1))
    assert within <= 3.0 < beyond


def test_a_spent_budget_affords_nothing() -> None:
    before = [(0.7, 0.1, 500)]
    assert affordable(1.0, 0.03, 3.0, 1e-6, before) == 0
    assert affordable(0.0, 0.03, 3.0, 1e-6) == 0
    assert affordable(0.3, 0.5, 0.5, 1e-6) == 0


@pytest.mark.parametrize(
    ("done", "delta", "why"),
    [
        ([(1.0, 0.01, 10**9)], 1e-6, "too long"),
        ([(0.05, 0.01, 10)], 1e-6, "too costly"),
        ([(1.0, 0.01, 100)], 1e-13, "below"),
        ([(1.0, 0.01, 100)], 0.5, "precision"),
    ],
)
def test_where_prv_cannot_tell_rdp_does_and_says_so(
    done: list[tuple[float, float, int]], delta: float, why: str
) -> None:
    told = spent(done, delta)
    assert told.epsilon == told.rdp
    assert told.accountant.startswith("RDP")
    assert why in told.accountant


def test_accountants_that_contradict_each_other_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_rdp", lambda history, delta, orders=(): 0.5)  # below what it can be
    with pytest.raises(RuntimeError, match="contradict"):
        spent([(1.0, 0.02, 2000)], 1e-6)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda: spent([(1.0, 0.1, 5)], 0.0), "delta"),
        (lambda: spent([(1.0, 0.1, 5)], 1.0), "delta"),
        (lambda: spent([], math.nan), "delta"),
        (lambda: spent([(1.0, 1.01, 5)], 1e-6), "sampling rate"),
        (lambda: spent([(1.0, 0.0, 5)], 1e-6), "sampling rate"),
        (lambda: spent([(-1.0, 0.1, 5)], 1e-6), "noise"),
        (lambda: spent([(math.inf, 0.1, 5)], 1e-6), "noise"),
        (lambda: spent([(1.0, 0.1, -5)], 1e-6), "steps"),
        (lambda: calibrate([Planned(0.1, 5)], 0.0, 1e-6), "epsilon"),
        (lambda: calibrate([Planned(0.1, 5)], math.inf, 1e-6), "epsilon"),
        (lambda: calibrate([Planned(0.1, 5)], -1.0, 1e-6), "epsilon"),
        (lambda: calibrate([Planned(0.1, 5)], 1.0, 2.0), "delta"),
        (lambda: calibrate([Planned(1.5, 5)], 1.0, 1e-6), "sampling rate"),
        (lambda: calibrate([Planned(0.1, 0)], 1.0, 1e-6), "no private step"),
        (lambda: calibrate([], 1.0, 1e-6), "no private step"),
        (lambda: calibrate([Planned(0.1, 50)], 1e-4, 1e-6), "no noise"),
        (lambda: affordable(1.0, 0.1, -3.0, 1e-6), "epsilon"),
        (lambda: affordable(1e6, 1e-6, 8.0, 1e-6), "any number"),
    ],
)
def test_bad_input_is_one_line(wrong, word: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=word) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_the_rule_for_delta() -> None:
    assert delta_violation(1e-6, 999) is None
    told = delta_violation(1e-3, 1000)
    assert told is not None
    assert "1/1000" in told
    assert "1e-04" in told
    assert delta_violation(0.2, 5) is not None
