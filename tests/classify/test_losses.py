"""Masks, soft labels and weights of the losses, against one-at-a-time sums."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt.classify.losses import Loss, asymmetric, loss, positive_weights
from medlt.types import InputError

NAMES = ("balanced", "asymmetric")
REAL = torch.tensor([[1.0, 0], [0, 0], [0, 1], [1, float("nan")]])


def case(seed: int, rows: int = 5, findings: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits that want gradients, labels 0 / 1 / soft / NaN, weights."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, findings, generator=g, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0.0, 1.0, 0.3, math.nan], dtype=torch.float64)
    labels = labels[torch.randint(4, (rows, findings), generator=g)]
    return logits, labels, torch.rand(rows, generator=g, dtype=torch.float64)


def gradient(of: Loss, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(of(logits, labels, weights), logits)
    return found


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**20))
def test_an_unknown_label_has_no_gradient_and_a_known_one_has(name: str, seed: int) -> None:
    logits, labels, weights = case(seed)
    found = gradient(loss(name, REAL), logits, labels, weights)
    assert found.isfinite().all()
    assert (found[labels.isnan()] == 0).all()
    hard = (labels == 0) & (logits.sigmoid() > 0.06) | (labels == 1)  # the asymmetric loss drops easy negatives
    assert (found[hard] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_a_known_label_is_zero_not_nan(name: str) -> None:
    logits, labels, weights = case(0)
    of = loss(name, REAL)
    assert of(logits, labels * math.nan, weights) == 0
    assert (gradient(of, logits, labels * math.nan, weights) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_known_labels_are_averaged_alone(name: str) -> None:
    """Equals the plain mean over known entries, computed one by one."""
    logits, labels, weights = case(3, rows=8)
    of = loss(name, REAL)
    one = torch.ones(1, dtype=torch.float64)
    parts = []
    for i, k in (~labels.isnan()).nonzero().tolist():
        alone = torch.full((1, 2), math.nan, dtype=torch.float64)
        alone[0, k] = labels[i, k]
        parts.append(weights[i] * of(logits[i : i + 1], alone, one))
    torch.testing.assert_close(of(logits, labels, weights), torch.stack(parts).mean())


@pytest.mark.parametrize("name", NAMES)
def test_a_soft_label_is_the_mixture_of_both(name: str) -> None:
    logits, _, weights = case(5)
    of, whole = loss(name, REAL), torch.ones_like(logits)
    mixed = 0.3 * of(logits, whole, weights) + 0.7 * of(logits, 0 * whole, weights)
    torch.testing.assert_close(of(logits, 0.3 * whole, weights), mixed)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_pulls_by_its_weight_whatever_the_other_rows(name: str) -> None:
    logits, labels, weights = case(7)
    of = loss(name, REAL)
    whole, half = weights.clone(), weights.clone()
    half[2] *= 0.3
    before, after = gradient(of, logits, labels, whole), gradient(of, logits, labels, half)
    torch.testing.assert_close(after[2], 0.3 * before[2])
    others = torch.arange(5) != 2
    torch.testing.assert_close(after[others], before[others])


def test_balanced_is_weighted_cross_entropy() -> None:
    """pos_weight = N_c / (n_c K): finding 0 has 4 known, 2 positive, K = 2 -> 1; finding 1 has 3 known, 1 -> 1.5."""
    torch.testing.assert_close(positive_weights(REAL), torch.tensor([1.0, 1.5]))
    logits, labels = torch.tensor([[0.4, -0.2]]), torch.tensor([[0.0, 1.0]])
    want = (math.log(1 + math.exp(0.4)) + 1.5 * math.log(1 + math.exp(0.2))) / 2
    assert loss("balanced", REAL)(logits, labels, torch.ones(1)).item() == pytest.approx(want, rel=1e-6)


def test_class_weights_are_clipped_and_count_soft_labels() -> None:
    labels = torch.zeros(1000, 2)
    labels[0, 0] = 0.5
    labels[:, 1] = 1
    torch.testing.assert_close(positive_weights(labels, most=20), torch.tensor([20.0, 0.5]))
    torch.testing.assert_close(positive_weights(labels, most=1.5), torch.tensor([1.5, 1 / 1.5]))
    assert positive_weights(torch.zeros(5, 1), most=10).item() == 10


def test_asymmetric_without_focus_or_margin_is_cross_entropy_and_with_a_margin_forgets_easy_negatives() -> None:
    logits, labels, weights = case(9)
    plain = asymmetric(logits, labels, weights, 0, 0, 0)
    torch.testing.assert_close(plain, _cross_entropy(logits, labels, weights))
    easy = torch.full((1, 1), -4.0, requires_grad=True)  # p = 0.018 < margin
    assert asymmetric(easy, torch.zeros(1, 1), torch.ones(1)) == 0
    far = asymmetric(torch.tensor([[90.0]]), torch.zeros(1, 1), torch.ones(1))
    assert far.item() == pytest.approx(-math.log(0.05) * 0.95**4, rel=1e-4)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    p = logits.sigmoid()
    each = -(labels * p.log() + (1 - labels) * (1 - p).log())
    return (each * weights[:, None]).nansum() / (~labels.isnan()).sum()


def test_an_unknown_loss_is_told() -> None:
    with pytest.raises(InputError, match="focal"):
        loss("focal", REAL)
