"""A gain as small as the table says is detected four times in five, and the patients computed for a gain suffice."""

import numpy as np
import pytest
from scipy.stats import nct, norm, t

from medlt.metrics.bootstrap import difference
from medlt.metrics.power import degrees, reach, smallest_gain, smallest_gain_with


def test_without_runs_that_differ_it_is_the_normal_formula() -> None:
    wanted = (norm.ppf(0.975) + norm.ppf(0.8)) * 0.01
    assert smallest_gain(0.01) == pytest.approx(wanted, rel=1e-5)
    assert smallest_gain(0.01, power=0.9, level=0.9) == pytest.approx(0.01 * (norm.ppf(0.95) + norm.ppf(0.9)), rel=1e-5)
    assert np.isnan(smallest_gain(np.nan))


@pytest.mark.parametrize("df", [1, 2, 4, 30])
def test_with_few_seeds_it_is_the_power_of_a_t_test(df: float) -> None:
    assert nct.sf(t.ppf(0.975, df), df, reach(df)) == pytest.approx(0.8, abs=1e-5)


def test_degrees_are_those_of_the_seeds_or_of_the_patients_at_the_ends() -> None:
    assert degrees(0.0, 0.3, 5) == pytest.approx(4)
    assert degrees(0.2, 0.0, 5) == np.inf
    assert degrees(0.2, 0.3, 1) == np.inf
    assert degrees(0.1, 0.1, 3) == pytest.approx(8)


def test_a_t_test_of_seeds_shows_its_smallest_gain_four_times_in_five() -> None:
    """Nothing but runs that differ: normal differences of 3 seeds, the interval mean +- t s / sqrt(3)."""
    draw, seeds, sd = np.random.default_rng(0), 3, 0.7
    gain = smallest_gain(sd / np.sqrt(seeds), degrees(0.0, sd**2 / seeds, seeds))
    seen = gain + sd * draw.normal(size=(4000, seeds))
    detected = seen.mean(1) - t.ppf(0.975, seeds - 1) * seen.std(1, ddof=1) / np.sqrt(seeds) > 0
    assert detected.mean() == pytest.approx(0.8, abs=0.025)


def experiment(signal: float, patients: int, trial: int) -> dict[str, float]:
    """AUROC line of one finding at a rate of 0.3, an arm of this signal against one of signal 1, two images each."""
    draw = np.random.default_rng([trial, patients])
    truth = np.repeat(draw.random((patients, 1)) < 0.3, 2, axis=0).astype(float)
    names = [str(n // 2) for n in range(2 * patients)]
    arms = [s * truth + draw.normal(size=(1, *truth.shape)) for s in (signal, 1.0)]
    table = difference(truth, *arms, names, ("x",), n_bootstrap=200, rng=draw)
    return dict(table.query("level == 'finding' and metric == 'AUROC'").iloc[0])


def test_an_experiment_finds_its_smallest_gain_four_times_in_five() -> None:
    """The true gain is known, Phi(1.5 / sqrt 2) - Phi(1 / sqrt 2); its variance shrinks as 1 / patients.

    Pilots of 120 patients give the number at which the smallest gain is the true one. 200 experiments of that size:
    with a true rate of 0.8 the share lies outside 0.7..0.9 less than one time in a thousand.
    """
    gain = norm.cdf(1.5 / np.sqrt(2)) - norm.cdf(1 / np.sqrt(2))
    pilots = [experiment(1.5, 120, 1000 + trial) for trial in range(20)]
    enough = int(np.mean([np.ceil(120 * (smallest_gain(one["se"]) / gain) ** 2) for one in pilots]))
    lines = [experiment(1.5, enough, trial) for trial in range(200)]
    assert np.mean([one["smallest"] for one in lines]) == pytest.approx(gain, rel=0.1)
    assert 0.7 < np.mean([one["verdict"] == "helps" for one in lines]) < 0.9


@pytest.mark.parametrize(("patients", "runs"), [(0.02, 0.01), (0.02, 0.0), (0.0, 0.01)])
def test_a_larger_experiment_has_less_variance_of_patients_and_of_runs(patients: float, runs: float) -> None:
    """se^2 = V + R / S: of 3 seeds, then with four times the patients and 12 seeds."""
    se, df = np.sqrt(patients + runs / 3), degrees(patients, runs / 3, 3)
    larger = smallest_gain_with(se, df, 3, times=4, more_seeds=12)
    own = patients / 4, runs / 12
    assert larger == pytest.approx(smallest_gain(np.sqrt(sum(own)), degrees(*own, 12)))
    assert smallest_gain_with(se, df, 3, times=1, more_seeds=3) == pytest.approx(smallest_gain(se, df))


def test_one_seed_says_nothing_of_runs() -> None:
    assert smallest_gain_with(0.02, np.inf, 1, times=4, more_seeds=1) == pytest.approx(smallest_gain(0.01))
    assert np.isnan(smallest_gain_with(0.02, np.inf, 1, times=4, more_seeds=3))


def test_four_times_the_patients_show_what_the_formula_says() -> None:
    """Pilots of 120 patients with several seeds are extended to 480; experiments of 480 have that smallest gain."""

    def seeds_of(patients: int, trial: int) -> dict[str, float]:
        draw = np.random.default_rng([trial, patients])
        truth = (draw.random((patients, 1)) < 0.3).astype(float)
        shared = draw.normal(size=(2, *truth.shape))
        arms = [s * truth + shared[i] + 0.3 * draw.normal(size=(4, *truth.shape)) for i, s in enumerate((1.5, 1.0))]
        table = difference(truth, *arms, [str(n) for n in range(patients)], ("x",), n_bootstrap=200, rng=draw)
        return dict(table.query("level == 'finding' and metric == 'AUROC'").iloc[0])

    extended = [
        smallest_gain_with(one["se"], one["df"], 4, times=4, more_seeds=4)
        for one in (seeds_of(120, trial) for trial in range(30))
    ]
    measured = [seeds_of(480, trial)["smallest"] for trial in range(30)]
    assert np.median(extended) == pytest.approx(np.median(measured), rel=0.1)
