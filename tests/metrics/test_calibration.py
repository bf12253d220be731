"""The calibration error is torchmetrics', the reliability curve counts what it says, its intervals cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from medlt.metrics.calibration import binned, calibration_error, probabilities, reliability, wilson
from medlt.types import InputError


def plain(truth: np.ndarray, score: np.ndarray, bins: int = 15) -> float:
    """ECE by its definition, in a loop."""
    total = 0.0
    for b in range(bins):
        top = score <= 1 if b == bins - 1 else score < (b + 1) / bins
        inside = (score >= b / bins) & top
        total += abs(score[inside].sum() - truth[inside].sum())
    return total / len(truth)


@given(st.integers(0, 2**32 - 1))
def test_equals_the_definition_on_rows_written_out(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.choice([0, 1, np.nan], p=[0.5, 0.3, 0.2], size=(12, 2))
    scores = draw.choice([draw.random((12, 2)), draw.integers(0, 16, (12, 2)) / 15])  # the latter on the edges
    owner, weights = draw.integers(0, 4, 12), draw.integers(0, 3, (5, 4))
    found = calibration_error(truth, scores, weights, owner)
    for d, k in np.ndindex(5, 2):
        rows = np.repeat(np.arange(12), weights[d, owner])
        rows = rows[~np.isnan(truth[rows, k])]
        wanted = plain(truth[rows, k], scores[rows, k]) if (truth[rows, k] == 1).any() else np.nan
        np.testing.assert_allclose(found[d, k], wanted, atol=1e-12)


def test_equals_torchmetrics() -> None:
    import torch

    reference = pytest.importorskip("torchmetrics.classification").BinaryCalibrationError
    draw = np.random.default_rng(0)
    score = draw.beta(0.6, 2, size=(500, 3)).astype(np.float32)
    truth = (draw.random((500, 3)) < score**1.5).astype(float)
    found = calibration_error(truth, score, np.ones((1, 500)))[0]
    for k in range(3):
        wanted = reference(n_bins=15)(torch.from_numpy(score[:, k]), torch.from_numpy(truth[:, k].astype(int)))
        assert found[k] == pytest.approx(float(wanted), abs=1e-6)


def test_bins_are_closed_below_and_the_last_one_above() -> None:
    np.testing.assert_array_equal(binned(np.array([0, 0.2499, 0.25, 0.5, 0.75, 0.999, 1.0]), 4), [0, 0, 1, 2, 3, 3, 3])


def test_probabilities_that_are_rates_have_no_error_and_certainty_the_error_rate() -> None:
    truth, score = np.array([[1.0], [0], [0], [0]]), np.full((4, 1), 0.25)
    assert calibration_error(truth, score, np.ones((1, 4)))[0, 0] == pytest.approx(0)
    assert calibration_error(truth, 1 - truth, np.ones((1, 4)))[0, 0] == pytest.approx(1)


def test_only_numbers_between_zero_and_one_are_probabilities() -> None:
    assert probabilities(np.array([0, 1, np.nan]))
    assert not probabilities(np.array([0.5, -1e-9]))
    assert not probabilities(np.array([0.5, 1.1]))


@pytest.mark.parametrize(("found", "images"), [(0, 9), (3, 10), (25, 25)])
def test_wilson_is_scipys(found: int, images: int) -> None:
    wanted = binomtest(found, images).proportion_ci(method="wilson")
    assert wilson(found / images, images) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_wilson_without_an_image_is_nan() -> None:
    assert np.isnan(wilson(np.nan, 0)).all()


def test_reliability_counts_by_hand() -> None:
    truth = np.array([[1, 0], [0, np.nan], [1, np.nan], [0, 1.0]])
    scores = np.array([[0.1, 0.6], [0.3, 0.2], [0.9, 0.9], [0.8, 0.7]])
    table = reliability(truth, scores, ["a", "b", "c", "d"], ("Mass", "Hernia"), bins=2).set_index(["finding", "bin"])
    assert table["images"].to_dict() == {
        ("all", 0): 2, ("all", 1): 4, ("Mass", 0): 2, ("Mass", 1): 2, ("Hernia", 0): 0, ("Hernia", 1): 2,
    }  # fmt: skip
    assert table.loc[("Mass", 0), ["low", "high", "mean_score", "rate"]].tolist() == pytest.approx([0, 0.5, 0.2, 0.5])
    assert table.loc[("all", 1), "rate"] == 0.5
    assert table.loc[("all", 1), "mean_score"] == pytest.approx((0.6 + 0.9 + 0.8 + 0.7) / 4)
    assert table.loc[("Hernia", 0), ["mean_score", "rate", "rate_low", "rate_high"]].isna().all()


def test_images_of_one_patient_are_worth_one() -> None:
    """Ten copies of each image, or ten seeds that agree, are no more evidence; independent images are Wilson's."""
    draw = np.random.default_rng(1)
    truth = (draw.random((200, 1)) < 0.3).astype(float)
    score, names = np.full((200, 1), 0.3), [str(n) for n in range(200)]
    once = reliability(truth, score, names, ("x",), bins=1).iloc[1]
    copied = reliability(np.repeat(truth, 10, 0), np.repeat(score, 10, 0), np.repeat(names, 10), ("x",), bins=1).iloc[1]
    seeds = reliability(truth, np.stack([score] * 10), names, ("x",), bins=1).iloc[1]
    ends = ["rate_low", "rate_high"]
    assert once[ends].tolist() == pytest.approx(wilson(truth.mean(), 200), abs=2e-3)
    for same in (copied, seeds):
        assert same[ends].tolist() == pytest.approx(once[ends].tolist(), abs=1e-12)
    assert (once["images"], copied["images"], seeds["images"]) == (200, 2000, 200)


def test_intervals_cover_where_images_of_a_patient_agree() -> None:
    """True rate 0.2 in 60 patients of 5 images: 95 % intervals of 300 tables miss 2 to 8 in 100, by images far more."""
    missed = plainly = 0
    for trial in range(300):
        draw = np.random.default_rng(trial)
        truth = np.repeat(draw.random((60, 1)) < 0.2, 5, axis=0).astype(float)
        row = reliability(truth, np.full((300, 1), 0.2), np.repeat(np.arange(60), 5), ("x",), bins=1).iloc[1]
        missed += not row["rate_low"] <= 0.2 <= row["rate_high"]
        low, high = wilson(truth.mean(), 300)
        plainly += not low <= 0.2 <= high
    assert 0.02 < missed / 300 < 0.08 < 0.3 < plainly / 300


@pytest.mark.parametrize("truth", [np.full((3, 1), np.nan), np.zeros((3, 1)), np.ones((3, 1))])
def test_without_labels_or_of_one_patient_nothing_breaks(truth: np.ndarray) -> None:
    table = reliability(truth, np.full((3, 1), 0.5), ["a"] * 3, ("x",))
    assert table["images"].sum() == (0 if np.isnan(truth).all() else 6)
    kept = table[table["images"] > 0]
    assert (kept["rate_low"] <= kept["rate"]).all()
    assert (kept["rate"] <= kept["rate_high"]).all()
    assert (kept["rate_high"] - kept["rate_low"] > 0.7).all()  # one patient


def test_bad_input_is_told() -> None:
    truth, score = np.zeros((2, 1)), np.full((2, 1), 0.5)
    with pytest.raises(InputError, match="sigmoid"):
        reliability(truth, score + 1, ["a", "b"], ("x",))
    with pytest.raises(InputError, match="3 patients"):
        reliability(truth, score, ["a", "b", "c"], ("x",))
    with pytest.raises(InputError, match="scores"):
        reliability(truth, score, ["a", "b"], ("x", "y"))
