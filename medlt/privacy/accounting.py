"""Privacy accounting: epsilon from noise, sampling rate and steps, and the reverse.

A step is the Gaussian mechanism on a Poisson sample: each unit is in it with probability q (rate), and normal noise of
sigma (noise multiplier) times the clipping norm is added to the sum. Neighbours: one unit added or removed. The rate is
the batch size over a public number of units, so it is the same for both neighbours, whatever their true numbers.

Two accountants of Opacus give upper bounds: PRV (Gopi et al. 2021, arXiv 2106.02848), which is tight, and RDP (Mironov
et al. 2019, arXiv 1908.10530), which is proved for adding and for removing a unit and always works. PRV is reported and
compared with RDP every time. If every unit is in every step, the closed form of the Gaussian mechanism is used (Balle &
Wang 2018, arXiv 1805.06530).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from medlt.types import InputError

Step: TypeAlias = tuple[float, float, int]
"""(noise multiplier, sampling rate, steps)"""

ERROR, SHARE, LARGEST_SHARE = 0.01, 0.003, 0.05
"""How far the bound of PRV may be above its estimate: absolute, as a share of epsilon, and the largest such share."""

TOLERANCE = 1e-3
"""Relative tolerance of a calibrated noise multiplier."""

SMALLEST_DELTA = 1e-12
LARGEST_GRID = 1 << 20
LARGEST_LOSS = 300.0
LARGEST_NOISE = 1e5
MOST_STEPS = 1 << 40


@dataclass(frozen=True)
class Planned:
    """A planned training. `times` is how many trainings of this kind one unit can be in (three of four folds: 3).

    `margin` is `medlt.privacy.limits.clip_margin` of its precision.
    """

    rate: float
    steps: int
    times: int = 1
    margin: float = 1.0


@dataclass(frozen=True)
class Spent:
    """Privacy spent at `delta`. `epsilon` and `rdp` are upper bounds; `accountant` names the source of `epsilon`."""

    epsilon: float
    rdp: float
    delta: float
    accountant: str = "PRV"


def spent(done: Sequence[Step], delta: float) -> Spent:
    """Return the joint cost of all steps of `done` on the same units.

    No steps cost 0; steps without noise cost infinity. Raises InputError for values out of range, and RuntimeError if
    PRV is above RDP by more than its error: then one of them is wrong, and neither is reported.
    """
    _require_delta(delta)
    history = _merged(done)
    if not history:
        return Spent(0.0, 0.0, delta, "none: no step was taken")
    if min(noise for noise, _, _ in history) == 0:
        return Spent(math.inf, math.inf, delta, "none: steps without noise")
    upper = _rdp(history, delta)
    if all(rate == 1 for _, rate, _ in history):
        mu = math.sqrt(sum(steps / noise**2 for noise, _, steps in history))
        return Spent(gaussian(mu, delta), upper, delta, "closed form of the Gaussian mechanism")
    try:
        tight = _prv(history, delta)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        return Spent(upper, upper, delta, f"RDP, an upper bound: {error}")
    if tight > upper + 3 * max(ERROR, LARGEST_SHARE * upper):
        raise RuntimeError(f"the accountants contradict each other: PRV {tight:.4g} is above RDP {upper:.4g}")
    return Spent(min(tight, upper), upper, delta)


def calibrate(plans: Sequence[Planned], epsilon: float, delta: float) -> float:
    """Return the smallest noise multiplier, within 0.1 %, at which all `plans` together cost at most `epsilon`.

    Raises InputError for values out of range, for no steps, and for an epsilon that no noise reaches.
    """
    _require_epsilon(epsilon)
    if not sum(plan.steps * plan.times for plan in plans):
        raise InputError("no private step is planned, so no noise can be calibrated; give the training steps")

    def done(noise: float) -> list[Step]:
        return [(noise / plan.margin, plan.rate, plan.steps * plan.times) for plan in plans]

    high = _enough(lambda noise: _rdp(_merged(done(noise)), delta, FEW) <= epsilon, epsilon, delta)
    return _smallest(lambda noise: spent(done(noise), delta).epsilon, epsilon, high)


def affordable(noise: float, rate: float, epsilon: float, delta: float, before: Sequence[Step] = ()) -> int:
    """Return how many steps can follow `before` so that all together cost at most `epsilon`; 0 if none.

    The number is exact: one more step would cost more. Raises InputError for values out of range, and for noise that
    allows any number of steps.
    """
    _require_epsilon(epsilon)

    def bound(steps: int) -> float:
        return _rdp(_merged([*before, (noise, rate, steps)]), delta) - epsilon

    def tight(steps: int) -> float:
        return spent([*before, (noise, rate, steps)], delta).epsilon - epsilon

    if tight(0) > 0 or noise == 0:
        return 0
    return _last(tight, _last(bound, 0) if bound(0) <= 0 else 0)


def gaussian(mu: float, delta: float) -> float:
    """Return epsilon of one Gaussian mechanism with sensitivity / noise = `mu`.

    k mechanisms of noise s equal one of mu = sqrt(k) / s.

    Balle & Wang 2018, theorem 8: delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu).
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    def over(epsilon: float) -> float:
        kept = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return float(kept - delta)

    if over(0.0) <= 0:
        return 0.0
    high = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1  # from the tail bound of a normal
    return float(brentq(over, 0.0, high, xtol=1e-12, rtol=1e-12))


def single(noise: float, rate: float, delta: float) -> float:
    """Return epsilon of one step in closed form.

    Amplification by sampling is tight: delta_q(log(1 + q (exp(epsilon) - 1))) = q delta(epsilon) (Balle, Barthe &
    Gaboardi 2018, arXiv 1807.01647, theorem 8).
    """
    if delta >= rate:
        return 0.0
    whole = gaussian(1 / noise, delta / rate)
    return math.log1p(rate * math.expm1(whole)) if whole < LARGEST_LOSS else whole + math.log(rate)


def _merged(done: Sequence[Step]) -> list[Step]:
    """Return equal steps counted together, sorted. The order does not change the cost. Raises InputError."""
    counts: dict[tuple[float, float], int] = {}
    for noise, rate, steps in done:
        if not (math.isfinite(noise) and noise >= 0):
            raise InputError(f"the noise multiplier is {noise}; it must be a finite number, 0 or more")
        if not 0 < rate <= 1:
            raise InputError(f"the sampling rate is {rate:g}; it must be in (0, 1]: use a smaller batch_size")
        if steps < 0 or steps != int(steps):
            raise InputError(f"the number of steps is {steps}; it must be a whole number, 0 or more")
        counts[float(noise), float(rate)] = counts.get((float(noise), float(rate)), 0) + int(steps)
    return [(noise, rate, steps) for (noise, rate), steps in sorted(counts.items()) if steps]


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}; it must lie between 0 and 1, well below 1 / number of patients")


def _require_epsilon(epsilon: float) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"epsilon is {epsilon}; it must be above 0: 8 is usual, 1 is strict")


FEW = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 1000)
ORDERS = (*(1 + i / 10 for i in range(1, 30)), *range(4, 64), 96, 128, 192, 256, 512, 1000)
"""Orders of RDP, which is an upper bound at each of them. Integers are cheap; large ones serve small epsilon."""


def _rdp(history: Sequence[Step], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the epsilon of RDP, an upper bound."""
    from opacus.accountants import RDPAccountant

    _require_delta(delta)
    if not history:
        return 0.0
    if min(noise for noise, _, _ in history) == 0:
        return math.inf
    accountant = RDPAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # "best order is the last": the bound is loose but holds
        epsilon = float(accountant.get_epsilon(delta, alphas=list(orders)))
    return max(epsilon, 0.0) if math.isfinite(epsilon) else math.inf


def _prv(history: Sequence[Step], delta: float) -> float:
    """Return the epsilon of PRV, an upper bound.

    Raises ValueError, ArithmeticError or RuntimeError if PRV cannot compute it.
    """
    from opacus.accountants import PRVAccountant

    if delta < SMALLEST_DELTA:
        raise ValueError(f"PRV is not exact for delta below {SMALLEST_DELTA:g}")
    off = delta / 1000
    error = _error(history, delta, off)
    accountant = PRVAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # about the orders that set the grid, and about quadrature
        epsilon = float(accountant.get_epsilon(delta, eps_error=error, delta_error=off))
    least = max(single(noise, rate, delta) for noise, rate, _ in history)
    if not math.isfinite(epsilon) or epsilon < least:
        raise ArithmeticError("PRV lost its precision")
    return epsilon


def _error(history: Sequence[Step], delta: float, off: float) -> float:
    """Return the error of epsilon to request from PRV: small, but large enough that its grid fits.

    Raises ValueError if the history is too long.
    """
    upper, widest = _rdp(history, delta, FEW), _rdp(history, off / 4, FEW) + 3
    steps = sum(count for _, _, count in history)
    fits = 2 * widest * math.sqrt(steps * math.log(12 / off) / 2) / LARGEST_GRID
    error = max(ERROR, SHARE * upper, fits)
    if widest > LARGEST_LOSS or error > max(2 * ERROR, LARGEST_SHARE * upper):
        raise ValueError("the history is too long or too costly for PRV")
    return error


def _enough(fits: Callable[[float], bool], epsilon: float, delta: float) -> float:
    """Return a noise multiplier that is large enough. It grows in steps of a quarter."""
    noise = 0.2
    while not fits(noise):
        noise *= 1.25
        if noise > LARGEST_NOISE:
            raise InputError(f"no noise gives epsilon {epsilon:g} at delta {delta:g}; give a larger epsilon")
    return noise


def _smallest(cost: Callable[[float], float], epsilon: float, high: float) -> float:
    """Return the smallest noise that costs at most `epsilon`, by Brent's method on a log scale; `high` is enough."""
    from scipy.optimize import brentq

    low = 0.85 * high
    while cost(low) <= epsilon:
        high, low = low, 0.85 * low
    within = TOLERANCE / 4
    root = brentq(lambda x: math.log(cost(math.exp(x)) / epsilon), math.log(low), math.log(high), xtol=within)
    noise = math.exp(root + within)
    while cost(noise) > epsilon:
        noise *= 1 + within
    return noise


def _last(over: Callable[[int], float], surely: int) -> int:
    """Return the largest number of steps at which the rising function `over` is at most 0; at `surely` it is.

    The search doubles first and then uses the Illinois variant of false position, because each call is expensive.
    """
    low, high = surely, surely + max(surely // 8, 1)
    below = over(low)
    while (above := over(high)) <= 0:
        low, below, high = high, above, high + 2 * (high - low)
        if high > MOST_STEPS:
            raise InputError("this noise allows any number of steps; give less noise or a smaller epsilon")
    side = 0
    while high - low > 1:
        share = 0.5 if below == above or math.isinf(above) else below / (below - above)
        middle = min(max(round(low + share * (high - low)), low + 1), high - 1)
        if (value := over(middle)) <= 0:
            low, below, above = middle, value, above / 2 if side < 0 else above
            side = -1
        else:
            high, above, below = middle, value, below / 2 if side > 0 else below
            side = 1
    return low
