"""Localisation measures equal slow definitions and closed forms, at chance too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from medlt.metrics.draws import patient_weights
from medlt.metrics.localisation import (
    MEASURES,
    correlation_interval,
    macro_interval,
    mean_interval,
    measures,
    pixel_auroc,
    pointing,
    rank_correlation,
    top_share,
)
from medlt.types import InputError

TIED = st.integers(0, 3).map(lambda n: n / 3)
CELLS = st.lists(st.tuples(TIED | st.floats(0, 1), TIED | st.floats(0, 1)), min_size=2, max_size=30)


def drawn(cells: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """A map and covered shares with something inside and something outside."""
    m, c = np.array([*cells, (0.25, 1.0), (0.5, 0.0)]).T
    return m, c


@given(CELLS)
def test_auroc_is_the_double_sum_over_pairs_of_points(cells):
    m, c = drawn(cells)
    above = (m[:, None] > m[None]) + 0.5 * (m[:, None] == m[None])
    slow = (c[:, None] * (1 - c[None]) * above).sum() / (c.sum() * (1 - c).sum())
    assert pixel_auroc(m, c) == pytest.approx(slow)


@given(CELLS)
def test_auroc_of_whole_cells_is_scikit_learns(cells):
    m, c = drawn(cells)
    c = np.round(c)
    assert pixel_auroc(m, c) == pytest.approx(roc_auc_score(c, m))


@given(CELLS, st.integers(2, 5))
def test_a_finer_grid_of_the_same_map_has_the_same_auroc_and_top(cells, times):
    """The measures are of the image, not of the grid: each cell split into equal parts, each part in or out."""
    m, c = drawn(cells)
    c = np.round(c * times) / times
    fine = np.concatenate([np.arange(times) < round(one * times) for one in c]).astype(float)
    assert pixel_auroc(np.repeat(m, times), fine) == pytest.approx(pixel_auroc(m, c))
    assert top_share(np.repeat(m, times), fine) == pytest.approx(top_share(m, c))


@settings(max_examples=50)
@given(CELLS, st.integers(0, 2**31))
def test_top_and_pointing_are_the_means_over_random_orders_of_tied_cells(cells, seed):
    m, c = drawn(cells)
    rng = np.random.default_rng(seed)
    tops, points = [], []
    for _ in range(400):
        order = np.lexsort((rng.random(len(m)), -m))
        whole, part = divmod(0.2 * len(m), 1)
        took = c[order][: int(whole)].sum() + part * c[order][int(whole)]
        tops.append(took / c.sum())
        points.append(c[order[0]] >= 0.01)
    error = 5 / np.sqrt(len(tops))
    assert np.mean(tops) == pytest.approx(top_share(m, c), abs=error * max(np.std(tops), 1e-9) + 1e-9)
    assert np.mean(points) == pytest.approx(pointing(m, c), abs=error * max(np.std(points), 1e-9) + 1e-9)


def test_a_perfect_a_reversed_and_a_constant_map():
    c = np.zeros((1, 10, 10))
    c[0, :2, :5] = 1  # a tenth
    best, worst, flat = (measures(m, c, 0.5) for m in (c, 1 - c, np.zeros_like(c)))
    assert {name: float(one[0]) for name, one in best.items()} == {
        "auroc": 1, "pointing": 1, "lesion": 1, "area": 0.1, "top": 1,
    }  # fmt: skip
    assert {name: float(one[0]) for name, one in worst.items()} == {
        "auroc": 0, "pointing": 0, "lesion": 0, "area": 0.9, "top": 0,
    }  # fmt: skip
    assert [float(flat[name][0]) for name in MEASURES] == pytest.approx([0.5, 0.1, 0, 0, 0.2])


def test_thresholds_are_one_for_each_image():
    m = np.linspace(0, 1, 16).reshape(1, 4, 4).repeat(2, 0)
    c = np.zeros_like(m)
    c[:, 2:] = 1
    found = measures(m, c, np.array([0.5, 0.79]))
    assert found["lesion"].tolist() == [1.0, 0.5]
    assert found["area"].tolist() == [0.5, 0.25]


def test_unknown_maps_and_lesions_and_empty_and_full_ones_have_no_value():
    m = np.random.default_rng(0).random((5, 4, 4))
    c = np.full((5, 4, 4), 0.3)
    m[0, 1, 1] = np.nan
    c[1], c[2], c[3] = np.nan, 0, 1
    found = measures(m, c)
    for name in MEASURES:
        assert np.isnan(found[name]).tolist() == [True, True, True, True, False]
    mean, seen = mean_interval(found["auroc"], list("abcde"), 50, np.random.default_rng(0))
    assert (mean, seen.low, seen.high) == pytest.approx((found["auroc"][4],) * 3)
    mean, seen = mean_interval(found["auroc"][:4], list("abcd"), 50, np.random.default_rng(0))
    assert np.isnan([mean, seen.low, seen.high]).all()
    assert measures(m[:0], c[:0])["auroc"].shape == (0,)
    with pytest.raises(InputError, match="one shape"):
        measures(m, c[:, :2])


def test_intervals_equal_a_loop_over_resampled_patients():
    rng = np.random.default_rng(1)
    patients = [f"p{i // 3}" for i in range(30)]
    values = rng.random(30)
    values[::7] = np.nan
    known = ~np.isnan(values)
    held, owner = values[known], np.array(patients)[known]
    weights = patient_weights(list(owner), 400, np.random.default_rng(2))
    slow = [np.repeat(held, one).mean() for one in weights]
    mean, seen = mean_interval(values, patients, 400, np.random.default_rng(2))
    assert mean == pytest.approx(held.mean())
    assert (seen.low, seen.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_the_mean_over_findings_resamples_their_patients_together():
    """Findings of very different numbers of images count alike; a finding without a value does not count."""
    rng = np.random.default_rng(4)
    few, many = rng.random(6), rng.random(40)
    owners = [f"p{i}" for i in range(6)], [f"p{i // 2}" for i in range(40)]
    weights = patient_weights([*owners[0], *owners[1]], 300, np.random.default_rng(5))
    with np.errstate(invalid="ignore"):
        halves = [weights[:, :6] @ few / weights[:, :6].sum(1), weights[:, 6:] @ many / weights[:, 6:].sum(1)]
    slow = np.nanmean(halves, axis=0)
    groups = [(few, owners[0]), (np.full(3, np.nan), list("xyz")), (many, owners[1])]
    mean, seen = macro_interval(groups, 300, np.random.default_rng(5))
    assert mean == pytest.approx((few.mean() + many.mean()) / 2)
    assert (seen.low, seen.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


@pytest.mark.slow
def test_the_interval_of_a_mean_covers_it():
    """Patients of three images each with an effect of their own; 95 % intervals cover the true mean about as often."""
    hits = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.normal(size=40), 3) + 0.3 * rng.normal(size=120)
        _, seen = mean_interval(values, [f"p{i // 3}" for i in range(120)], 300, rng)
        hits += seen.low <= 0 <= seen.high
    assert 0.91 <= hits / 400 <= 0.98


@given(st.lists(st.tuples(TIED, TIED | st.just(np.nan)), min_size=3, max_size=30))
def test_rank_correlation_is_scipys_on_known_pairs(pairs):
    a, b = np.array(pairs).T
    known = ~np.isnan(b)
    if known.sum() < 3 or len(set(a[known])) < 2 or len(set(b[known])) < 2:
        assert np.isnan(rank_correlation(a, b))
    else:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a[known], b[known]).statistic)


def test_correlation_has_an_interval_over_patients():
    rng = np.random.default_rng(3)
    a = rng.normal(size=60)
    owner = [f"p{i // 2}" for i in range(60)]
    value, seen = correlation_interval(a, np.exp(a), owner, 100, rng)
    assert (value, seen.low, seen.high) == pytest.approx((1, 1, 1))
    value, seen = correlation_interval(a, rng.normal(size=60), owner, 200, rng)
    assert seen.low < value < seen.high
    assert seen.low < 0 < seen.high
    value, seen = correlation_interval(a, np.zeros(60), owner, 100, rng)
    assert np.isnan([value, seen.low]).all()
