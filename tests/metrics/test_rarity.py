"""AvgkNN, LOF and the Rarity score: equal to their definitions, and larger for what was planted outside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import LocalOutlierFactor

from medlt.metrics.rarity import avg_knn, lof, rarity, rarity_summary
from medlt.types import InputError


def slow(real: np.ndarray, x: np.ndarray, k: int) -> tuple[float, float, float]:
    """(AvgkNN, LOF, Rarity) of one sample by their definitions; LOF as Breunig et al. 2000, definitions 5 to 7."""
    between = np.sqrt(((real[:, None] - real[None]) ** 2).sum(2))
    np.fill_diagonal(between, np.inf)
    k_distance = np.sort(between, 1)[:, k - 1]

    def density(distance: np.ndarray) -> tuple[float, np.ndarray]:
        near = np.argsort(distance, kind="stable")[:k]
        return 1 / (np.maximum(distance[near], k_distance[near]).mean() + 1e-10), near  # as scikit-learn, lest it be 0

    distance = np.sqrt(((real - x) ** 2).sum(1))
    own, near = density(distance)
    factor = np.mean([density(between[j])[0] for j in near]) / own
    held = [r for r, d in zip(k_distance, distance, strict=True) if d < r]
    return float(np.sort(distance)[:k].mean()), float(factor), min(held, default=np.nan)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_equal_to_the_definitions_sample_by_sample(seed: int, k: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    real, samples = rng.normal(size=(12, width)), rng.normal(0, 1.5, size=(6, width))
    wanted = np.array([slow(real, x, k) for x in samples]).T
    found = [fn(real, samples, k) for fn in (avg_knn, lof, rarity)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)  # distances may cancel


def test_lof_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    real, samples = rng.normal(size=(80, 5)), rng.normal(size=(30, 5))
    reference = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(real)
    np.testing.assert_array_equal(lof(real, samples), -reference.score_samples(samples))


def test_planted_outliers_are_the_rarest() -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(size=(400, 3))
    samples = np.vstack([rng.normal(size=(50, 3)) * 0.5, np.eye(3) * 9])
    for score in (avg_knn(real, samples), lof(real, samples)):
        assert set(np.argsort(score)[-3:]) == {50, 51, 52}
    assert np.isnan(rarity(real, samples)[-3:]).all()


def test_rarity_grows_outward_inside_the_data_and_says_what_is_outside() -> None:
    rng = np.random.default_rng(2)
    real, samples = rng.normal(size=(3000, 2)), rng.normal(size=(2000, 2))
    found, out = rarity(real, samples), np.linalg.norm(samples, axis=1)
    middle, edge = found[out < 0.5], found[(out > 1.8) & (out < 2.5)]
    assert np.nanmean(edge) > 2 * np.nanmean(middle)
    mean, outside = rarity_summary(real, samples)
    assert mean == pytest.approx(np.nanmean(found))
    assert outside == pytest.approx(np.isnan(found).mean())
    assert 0 < outside < 0.1
    wide_mean, wide_outside = rarity_summary(real, samples * 4)
    assert wide_outside > 0.5
    assert wide_mean > mean


def test_all_outside_has_no_mean() -> None:
    real = np.random.default_rng(3).normal(size=(20, 2))
    mean, outside = rarity_summary(real, real + 100)
    assert np.isnan(mean)
    assert outside == 1


@given(st.integers(0, 2**32 - 1))
def test_a_sample_depends_on_itself_and_the_set_of_real_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, samples = rng.normal(size=(25, 3)), rng.normal(size=(8, 3))
    order = rng.permutation(8)
    for fn in (avg_knn, lof, rarity):
        np.testing.assert_allclose(fn(rng.permutation(real), samples[order], 3), fn(real, samples, 3)[order])


def test_copies_of_real_rows_are_no_crash() -> None:
    real = np.repeat(np.random.default_rng(4).normal(size=(6, 2)), 5, axis=0)
    assert (avg_knn(real, real[:3], 3) == 0).all()
    assert np.isnan(rarity(real, real[:3], 3)).all()  # their balls have no inside
    assert np.isfinite(lof(real, real[:3], 3)).all()


@pytest.mark.parametrize(
    ("fn", "rows", "k", "said"),
    [
        (avg_knn, 4, 5, "4 real rows; a neighbourhood of 5 needs at least 5"),
        (lof, 5, 5, "at least 6"),
        (rarity, 3, 3, "at least 4"),
        (rarity, 9, 0, "at least 1"),
    ],
)
def test_too_few_rows_are_told(fn: object, rows: int, k: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fn(np.zeros((rows, 2)), np.zeros((2, 2)), k)  # type: ignore[operator]
