"""KID and the Frechet distance: equal to their definitions and to torchmetrics, unbiased or right in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt.metrics import features
from medlt.metrics.fidelity import frechet, kid, kid_subsets
from medlt.types import InputError


def slow_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The three sums, a pair at a time."""
    n, m, width = len(x), len(y), x.shape[1]

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / width + 1) ** 3)

    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def slow_error(x: np.ndarray, y: np.ndarray) -> float:
    """The two-sample jackknife with every row left out in turn."""
    without_x = np.array([slow_kid(np.delete(x, i, 0), y) for i in range(len(x))])
    without_y = np.array([slow_kid(x, np.delete(y, j, 0)) for j in range(len(y))])
    return float(np.sqrt(sum((len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum() for v in (without_x, without_y))))


def slow_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """By eigenvalues: tr (ab)^(1/2) = tr (a^(1/2) b a^(1/2))^(1/2), of symmetric matrices that may be singular."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ b @ half).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * root)


def drawn(seed: int, n: int = 9, m: int = 7, width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)), rng.normal(0.5, 1.5, size=(m, width))


@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(3, 9), st.integers(1, 5))
def test_kid_and_its_error_equal_their_sums(seed: int, n: int, m: int, width: int) -> None:
    x, y = drawn(seed, n, m, width)
    found = kid(x, y)
    assert found.value == pytest.approx(slow_kid(x, y), abs=1e-10)
    if min(n, m) > 3:
        assert found.sd == pytest.approx(slow_error(x, y), rel=1e-6, abs=1e-10)


class Bare(torch.nn.Module):
    """Features as they are, for a metric that wants an extractor."""

    num_features = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_equal_to_torchmetrics() -> None:
    """In its own words: whole sets, float64, no Inception and no torch-fidelity."""
    pytest.importorskip("torchmetrics")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        metrics = [
            KernelInceptionDistance(Bare(), subsets=1, subset_size=60),
            FrechetInceptionDistance(Bare()),
        ]
        x, y = drawn(0, 60, 60, 6)
        for metric in metrics:
            metric.set_dtype(torch.float64)
            metric.update(torch.from_numpy(x), real=True)
            metric.update(torch.from_numpy(y), real=False)
        reference_kid, reference_fid = metrics[0].compute()[0], metrics[1].compute()
    assert kid(x, y).value == pytest.approx(float(reference_kid), rel=1e-9)
    assert frechet(x, y) == pytest.approx(float(reference_fid), rel=1e-9)


def test_kid_of_equal_distributions_is_centred_at_zero() -> None:
    found = np.array([kid(*np.random.default_rng(s).normal(size=(2, 20, 8))).value for s in range(600)])
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    assert (found < 0).mean() > 0.3


def test_kid_of_shifted_gaussians_is_the_closed_form_and_its_error_the_scatter() -> None:
    """One dimension, N(0,1) against N(c,1): E k = E (xy + 1)^3 = m3 m3' + 3 m2 m2' + 3 m1 m1' + 1 of raw moments."""
    c = 0.7
    zero, moved = np.array([0, 1, 0.0]), np.array([c, 1 + c**2, 3 * c + c**3])
    weight = np.array([3, 3, 1.0])
    truth = (weight * (zero - moved) ** 2).sum()
    found = [
        kid(g.normal(size=(150, 1)), g.normal(c, 1, size=(150, 1))) for g in map(np.random.default_rng, range(300))
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(len(values))
    assert np.sqrt(np.mean([one.sd**2 for one in found])) == pytest.approx(values.std(), rel=0.15)


def test_subsets_of_everything_are_the_whole_and_smaller_ones_scatter_round_it() -> None:
    x, y = drawn(3, 80, 80, 4)
    whole = kid(x, y)
    assert kid_subsets(x, y, np.random.default_rng(0), 3, 80).value == pytest.approx(whole.value)
    some = kid_subsets(x, y, np.random.default_rng(0), 200, 30)
    assert some.value == pytest.approx(whole.value, abs=4 * some.sd / np.sqrt(200))
    assert kid_subsets(x, y, np.random.default_rng(0), 5, 30) == kid_subsets(x, y, np.random.default_rng(0), 5, 30)


@pytest.mark.parametrize(("n", "m", "width"), [(40, 30, 6), (8, 30, 12), (30, 8, 12), (5, 6, 12), (2, 3, 4)])
def test_frechet_equals_the_root_of_the_product_also_with_few_rows(n: int, m: int, width: int) -> None:
    x, y = drawn(n, n, m, width)
    assert frechet(x, y) == pytest.approx(slow_frechet(x, y), rel=1e-5)  # the root of an eigenvalue of 1e-16 is 1e-8


def test_frechet_of_two_gaussians_in_closed_form() -> None:
    """Diagonal covariances: the squared shift plus the squared differences of the standard deviations."""
    rng = np.random.default_rng(5)
    first, second = np.array([1, 2, 0.5]), np.array([2, 1, 0.5])
    x = rng.normal(0, first, size=(60_000, 3))
    y = rng.normal([1, 0, 0], second, size=(60_000, 3))
    assert frechet(x, y) == pytest.approx(1 + ((first - second) ** 2).sum(), rel=0.02)
    assert frechet(x, x) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(("n", "said"), [(25, 24), (100, 5.8), (1000, 0.6)])
def test_the_bias_of_few_samples_is_as_the_docstring_says(n: int, said: float) -> None:
    found = [frechet(*np.random.default_rng(s).normal(size=(2, n, 32))) for s in range(10)]
    assert np.mean(found) == pytest.approx(said, rel=0.06)


@given(st.integers(0, 2**32 - 1))
def test_order_and_sides_do_not_matter(seed: int) -> None:
    x, y = drawn(seed, 12, 8, 4)
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(x), rng.permutation(y)
    assert kid(*mixed).value == pytest.approx(kid(y, x).value, abs=1e-9)
    assert frechet(*mixed) == pytest.approx(frechet(y, x), abs=1e-9)


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(6, 33, 21, 4)
    whole = kid(x, y)
    monkeypatch.setattr(features, "HELD", 64)
    assert kid(x, y).value == pytest.approx(whole.value, rel=1e-12)
    assert kid(x, y).sd == pytest.approx(whole.sd, rel=1e-12)


def test_copies_of_one_row_are_no_crash() -> None:
    x = np.ones((6, 3))
    assert kid(x, x).value == pytest.approx(0, abs=1e-12)
    assert frechet(x, x) == 0


@pytest.mark.parametrize(
    ("fn", "n", "m", "said"),
    [(kid, 2, 9, "2 real rows; KID .* at least 3"), (kid, 9, 2, "2 synthetic"), (frechet, 1, 9, "1 real rows")],
)
def test_too_few_rows_are_told(fn: object, n: int, m: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fn(np.zeros((n, 3)), np.zeros((m, 3)))  # type: ignore[operator]


def test_a_subset_larger_than_the_set_is_told() -> None:
    with pytest.raises(InputError, match="at least 50"):
        kid_subsets(*drawn(0), np.random.default_rng(0), size=50)
    with pytest.raises(InputError, match="at least 1 subset of 3 rows"):
        kid_subsets(*drawn(0), np.random.default_rng(0), size=2)
