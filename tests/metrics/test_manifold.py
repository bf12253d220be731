"""Precision, recall, density, coverage: equal to `prdc` and to a double loop, and right on Gaussians."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.metrics import features
from medlt.metrics.features import nearest_squared, scaled, squared_distances, squared_radii
from medlt.metrics.manifold import NAMES, prdc
from medlt.types import InputError


def slow(real: np.ndarray, synthetic: np.ndarray, k: int, closed: bool) -> dict[str, float]:
    """The definitions, one pair at a time."""

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radius(x: np.ndarray, i: int) -> float:
        return sorted(apart(x[i], other) for j, other in enumerate(x) if j != i)[k - 1]

    def holds(centre: np.ndarray, r: float, point: np.ndarray) -> bool:
        d = apart(centre, point)
        return d < r or (closed and d == r)

    own, other = ([radius(x, i) for i in range(len(x))] for x in (real, synthetic))
    held = np.array([[holds(f, r, g) for g in synthetic] for f, r in zip(real, own, strict=True)])
    recalled = [any(holds(g, r, f) for g, r in zip(synthetic, other, strict=True)) for f in real]
    values = (held.any(0).mean(), np.mean(recalled), held.sum() / k / len(synthetic), held.any(1).mean())
    return dict(zip(NAMES, map(float, values), strict=True))


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Continuous features with copies among them: some synthetic rows are real ones, some rows come twice."""
    rng, k = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.integers(1, 4))
    n, m, width = draw(st.integers(k + 1, 14)), draw(st.integers(k + 1, 14)), draw(st.integers(1, 4))
    real, synthetic = rng.normal(size=(n, width)), rng.normal(size=(m, width))
    copied = draw(st.integers(0, min(n, m)))
    synthetic[:copied] = real[:copied]
    if draw(st.booleans()):
        real[-1] = real[0]
    return real, synthetic, k


@given(cases(), st.booleans())
def test_equals_the_definitions_pair_by_pair(case: tuple[np.ndarray, np.ndarray, int], closed: bool) -> None:
    real, synthetic, k = case
    # a synthetic row that copies a real one lies on the surface of balls that end there: rounding decides, not we
    moved = synthetic + 1e-3 * np.random.default_rng(0).normal(size=synthetic.shape)
    assert prdc(real, moved, k, closed) == pytest.approx(slow(real, moved, k, closed))


@pytest.mark.parametrize(("closed", "share"), [(True, 1.0), (False, 0.0)])
def test_the_surface_counts_as_asked(closed: bool, share: float) -> None:
    """On a square lattice with k = 1 every ball ends exactly at the next point, where the synthetic samples lie."""
    real = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    synthetic = np.array([[4.0, 0], [4, 2]])
    assert prdc(real, synthetic, 1, closed)["precision"] == share
    assert prdc(real, synthetic, 1, closed)["density"] == share
    diagonal = np.array([[-1.0, -1], [2, 2]])  # at the square root of 2, which no float is
    assert prdc(np.array([[0.0, 0], [1, 1]]), diagonal, 1, closed)["coverage"] == share


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_prdc(k: int, capsys: pytest.CaptureFixture[str]) -> None:
    reference = pytest.importorskip("prdc").compute_prdc
    rng = np.random.default_rng(k)
    real, synthetic = rng.normal(size=(150, 16)), rng.normal(0.3, 1.2, size=(110, 16))
    assert prdc(real, synthetic, k) == pytest.approx(reference(real, synthetic, nearest_k=k))


def test_equal_distributions_are_near_one_and_cover_as_derived() -> None:
    rng = np.random.default_rng(1)
    found = [prdc(rng.normal(size=(400, 4)), rng.normal(size=(300, 4))) for _ in range(12)]
    mean = {name: np.mean([one[name] for one in found]) for name in NAMES}
    assert mean["precision"] > 0.9
    assert mean["recall"] > 0.9
    assert mean["density"] == pytest.approx(1, abs=0.06)
    expected = 1 - np.prod([(400 - i) / (700 - i) for i in range(1, 6)])  # Naeem et al., lemma 2, with k = 5
    assert mean["coverage"] == pytest.approx(expected, abs=0.015)


def test_wider_samples_lose_precision_and_narrower_ones_recall() -> None:
    rng = np.random.default_rng(2)
    real = rng.normal(size=(500, 8))
    equal, wide, narrow = (prdc(real, rng.normal(0, sd, size=(500, 8))) for sd in (1, 2, 0.4))
    assert wide["precision"] < 0.5 < 0.8 < equal["precision"] < narrow["precision"]
    assert narrow["recall"] < 0.5 < 0.8 < equal["recall"] <= wide["recall"] + 0.02
    assert wide["density"] < 0.3 < 0.85 < equal["density"] < narrow["density"]
    assert max(wide["coverage"], narrow["coverage"]) < equal["coverage"]


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "HELD", 64)
    rng = np.random.default_rng(3)
    real, synthetic = rng.normal(size=(37, 5)), rng.normal(size=(29, 5))
    cut = [part for part, _ in squared_distances(real, synthetic)]
    assert len(cut) > 10
    in_pieces = prdc(real, synthetic, 3)
    monkeypatch.undo()
    assert in_pieces == prdc(real, synthetic, 3)


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, synthetic = rng.normal(size=(20, 3)), rng.normal(size=(15, 3))
    mixed = prdc(rng.permutation(real), rng.permutation(synthetic), 2)
    assert mixed == pytest.approx(prdc(real, synthetic, 2))


def test_copies_have_no_distance_and_far_from_zero_too() -> None:
    x = np.random.default_rng(4).normal(1000, 1, size=(30, 64))
    assert (nearest_squared(x, x, 1) == 0).all()
    assert (squared_radii(np.repeat(x, 4, axis=0), 3) == 0).all()
    assert prdc(np.repeat(x, 4, axis=0), x[:10], 3)["precision"] == 0
    assert prdc(np.repeat(x, 4, axis=0), np.repeat(x[:10], 4, axis=0), 3, closed=True)["precision"] == 1


def test_features_are_scaled_by_the_real_ones() -> None:
    rng = np.random.default_rng(5)
    real, other = rng.normal(3, [1, 10, 0], size=(50, 3)), rng.normal(size=(4, 3))
    first, second = scaled(real, other)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(first.std(0), [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(second[:, 2], other[:, 2] - 3)
    np.testing.assert_allclose(second[:, 1], (other[:, 1] - real[:, 1].mean()) / real[:, 1].std())


@pytest.mark.parametrize(
    ("real", "synthetic", "k", "said"),
    [
        (np.zeros((5, 2)), np.zeros((9, 2)), 5, "5 real rows; a ball of 5 neighbours needs at least 6"),
        (np.zeros((9, 2)), np.zeros((5, 2)), 5, "5 synthetic rows"),
        (np.zeros((9, 2)), np.zeros((0, 2)), 5, "0 synthetic rows"),
        (np.zeros((9, 2)), np.zeros((9, 3)), 5, "one extractor"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), 5, "not finite"),
        (np.zeros(9), np.zeros((9, 2)), 5, "shape"),
        (np.zeros((9, 0)), np.zeros((9, 0)), 5, "shape"),
        (np.zeros((9, 2)), np.zeros((9, 2)), 0, "at least 1"),
    ],
)
def test_bad_input_is_told(real: np.ndarray, synthetic: np.ndarray, k: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prdc(real, synthetic, k)
