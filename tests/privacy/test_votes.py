"""Votes of patients: their sensitivity by brute force, the nearest image by an oracle, noise, and what it costs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from medlt.privacy import votes
from medlt.privacy.accounting import Planned, calibrate, spent
from medlt.privacy.dpsgd.randomness import Secure, Seeded
from medlt.rng import numpy_generator
from medlt.types import InputError

SIDE, FINDINGS, POPULATION = 2, 3, 4


def drawn(seed: int, rows: int, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Made-up images [F,n,D], real ones [N,D], their findings [N,F] and their patients [N]."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, (FINDINGS, POPULATION, SIDE**2), np.uint8)
    real = rng.integers(0, 256, (rows, SIDE**2), np.uint8)
    return made, real, rng.random((rows, FINDINGS)) < 0.6, rng.integers(0, patients, rows).astype(str)


def votes_of(made: np.ndarray, real: np.ndarray, has: np.ndarray, owners: np.ndarray) -> np.ndarray:
    return votes.count_votes(votes.nearest(real, made), has, list(owners), made.shape[1])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 6))
def test_no_patient_moves_the_votes_by_more_than_one(seed: int, rows: int, patients: int) -> None:
    """Every patient of a collection is removed in turn, with all of their images and findings."""
    made, real, has, owners = drawn(seed, rows, patients)
    whole = votes_of(made, real, has, owners)
    for one in set(owners):
        kept = owners != one
        moved = np.linalg.norm(whole - votes_of(made, real[kept], has[kept], owners[kept]))
        assert moved <= votes.SENSITIVITY + 1e-12
        assert moved == pytest.approx(1.0 if has[~kept].any() else 0.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_vote_goes_to_the_nearest_image(seed: int) -> None:
    made, real, _, _ = drawn(seed, 9, 3)
    far = np.abs(real[:, None, None].astype(int) - made[None].astype(int))
    distance = (far**2).sum(-1)
    found = votes.nearest(real, made)
    for i, f in np.ndindex(found.shape):
        assert distance[i, f, found[i, f]] == distance[i, f].min()
        assert found[i, f] == int(np.flatnonzero(distance[i, f] == distance[i, f].min())[0])


def test_a_vote_is_the_same_in_any_company() -> None:
    made, real, _, _ = drawn(0, 5000, 3)
    whole = votes.nearest(real, made)
    for i in range(0, 5000, 617):
        assert (votes.nearest(real[i : i + 1], made) == whole[i]).all()


def test_votes_are_split_to_a_norm_of_one() -> None:
    """One image with two findings; two images with one finding that vote for different ones; for the same one."""
    nearest = np.array([[0, 1], [2, 0], [3, 0], [3, 0], [3, 0]])
    has = np.array([[True, True], [True, False], [True, False], [True, False], [True, False]])
    made = votes.count_votes(nearest, has, ["a", "b", "b", "c", "c"], 4)
    half = 1 / math.sqrt(2)
    assert made == pytest.approx(np.array([[half, 0, half, half + 1], [0, half, 0, 0]]))
    apart = votes.count_votes(nearest, has, ["1", "2", "3", "4", "5"], 4)  # the unit image
    assert apart == pytest.approx(np.array([[half, 0, 1, 3], [0, half, 0, 0]]))


def test_without_a_row_there_is_no_vote() -> None:
    assert (votes.count_votes(np.zeros((0, 2), int), np.zeros((0, 2), bool), [], 3) == np.zeros((2, 3))).all()


def test_thumbnails_are_means_of_cells() -> None:
    image = torch.tensor([[0.0, 1.0, 0.2, 0.2], [1.0, 0.0, 0.2, 0.2]]).repeat(2, 1)[None, None]
    assert votes.thumbnails(image, 2).tolist() == [[128, 51, 128, 51]]


def test_noise_has_the_deviation_that_is_accounted() -> None:
    counted = np.full((40, 250), 3.0)
    for source in (Secure(), Seeded(1)):
        made = votes.noisy(counted, 2.5, source).double().numpy().ravel() - 3
        assert abs(made.mean()) < 5 * 2.5 / math.sqrt(made.size)
        assert made.std() == pytest.approx(2.5, rel=5 / math.sqrt(2 * made.size))
    assert (votes.noisy(counted, 2.5, Secure()) != votes.noisy(counted, 2.5, Secure())).all()


def test_shares_follow_the_votes_above_the_threshold_and_are_equal_without_any() -> None:
    given = torch.tensor([[5.0, 1.0, 3.0, -4.0], [1.0, 2.0, -1.0, 0.5]])
    assert votes.shares(given, 2.0) == pytest.approx(np.array([[0.75, 0, 0.25, 0], [0.25] * 4]))
    assert votes.drowned(given, 2.0).tolist() == [False, True]
    assert votes.shares(given, 0.0)[0] == pytest.approx(np.array([5, 1, 3, 0]) / 9)
    with pytest.raises(InputError, match="give 0 or more"):
        votes.shares(given, -1.0)


@pytest.mark.parametrize("delta", [1e-4, 1e-6])
@pytest.mark.parametrize("generations", [1, 4, 20])
@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_the_calibrated_noise_meets_the_closed_form_of_the_gaussian_mechanism(
    epsilon: float, generations: int, delta: float
) -> None:
    """T votes with noise sigma are one Gaussian mechanism of mu = sqrt(T) / sigma (Balle and Wang, theorem 8)."""
    sigma = calibrate([Planned(1.0, generations)], epsilon, delta)
    cost = spent([(sigma, 1.0, generations)], delta)
    mu = math.sqrt(generations) / sigma
    exact = norm.cdf(mu / 2 - cost.epsilon / mu) - math.exp(cost.epsilon) * norm.cdf(-mu / 2 - cost.epsilon / mu)
    assert exact == pytest.approx(delta, rel=1e-6)
    assert cost.accountant.startswith("closed form")
    assert 0.995 * epsilon < cost.epsilon <= epsilon <= cost.rdp * 1.001


def test_the_loss_of_the_worst_neighbours_is_that_of_the_accountant() -> None:
    """Monte Carlo: the log-likelihood ratio of noisy votes with and without a patient who votes alone."""
    sigma, generations, delta, count = 2.0, 3, 1e-2, 200_000
    moved = votes.count_votes(np.array([[1, 2, 0]]), np.array([[True, True, True]]), ["a"], POPULATION).ravel()
    noise = sigma * numpy_generator("votes").standard_normal((count, generations, moved.size))
    loss = ((2 * noise @ moved + moved @ moved) / (2 * sigma**2)).sum(1)
    epsilon = spent([(sigma, 1.0, generations)], delta).epsilon
    assert np.clip(1 - np.exp(epsilon - loss), 0, None).mean() == pytest.approx(delta, rel=0.05)
