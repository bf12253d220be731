"""Losses: masks, soft labels and weights against one-at-a-time sums; each against its published formula, slowly."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medlt.classify.losses import (
    LOSSES,
    SCALE,
    Loss,
    Pull,
    asymmetric,
    effective_weights,
    focal,
    log_odds,
    log_prior,
    loss,
    margins,
    positive_weights,
    softmax_focal,
)
from medlt.types import InputError

NAN = math.nan
REAL = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, NAN, NAN]])
LONG = F.one_hot(torch.tensor([0] * 90 + [1] * 9 + [2]), 3).double()
BOTH = [(task, name) for task, names in LOSSES.items() for name in names]
MULTI = list(LOSSES["multi-label"])
SINGLE = list(LOSSES["single-label"])


def case(seed: int, rows: int = 5, findings: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that want gradients, labels 0 / 1 / soft / NaN, weights."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, findings, generator=g, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0.0, 1.0, 0.3, NAN], dtype=torch.float64)
    labels = labels[torch.randint(4, (rows, findings), generator=g)]
    return logits, labels, torch.rand(rows, generator=g, dtype=torch.float64)


def classes(seed: int, rows: int = 6, findings: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, one-hot labels, weights 1."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, findings, generator=g, dtype=torch.float64).requires_grad_()
    labels = F.one_hot(torch.randint(findings, (rows,), generator=g), findings).double()
    return logits, labels, torch.ones(rows, dtype=torch.float64)


def gradient(of: Loss, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(of(logits, labels, weights), logits)
    return result


def ones(findings: int) -> Pull:
    return Pull(torch.ones(findings, dtype=torch.float64), torch.ones(findings, dtype=torch.float64))


@pytest.mark.parametrize("name", MULTI)
@given(seed=st.integers(0, 2**20))
def test_an_unknown_label_has_no_gradient_and_a_known_one_has(name: str, seed: int) -> None:
    logits, labels, weights = case(seed)
    result = gradient(loss(name, REAL), logits, labels, weights)
    assert result.isfinite().all()
    assert (result[labels.isnan()] == 0).all()
    hard = (labels == 0) & (logits.sigmoid() > 0.06) | (labels == 1)  # the asymmetric loss drops easy negatives
    assert (result[hard] != 0).all()
    assert (result[hard & (labels == 1)] < 0).all()
    assert (result[hard & (labels == 0)] > 0).all()


@pytest.mark.parametrize("name", SINGLE)
@given(seed=st.integers(0, 2**20))
def test_a_row_with_an_unknown_class_is_left_out_whole(name: str, seed: int) -> None:
    logits, labels, weights = classes(seed)
    labels[0, 1] = NAN
    of = loss(name, LONG, "single-label")
    result = gradient(of, logits, labels, weights)
    assert (result[0] == 0).all()
    assert (result[1:][labels[1:] == 1] < 0).all()
    assert of(logits, labels, weights).item() == pytest.approx(of(logits[1:], labels[1:], weights[1:]).item())


@pytest.mark.parametrize(("task", "name"), BOTH)
@pytest.mark.parametrize("reweighted", [False, True])
def test_a_batch_without_a_known_label_is_zero_not_nan(task: str, name: str, reweighted: bool) -> None:
    logits, labels, weights = case(0)
    of = loss(name, REAL, task, reweighted)
    assert of(logits, labels * NAN, weights) == 0
    assert (gradient(of, logits, labels * NAN, weights) == 0).all()


@pytest.mark.parametrize(("task", "name"), BOTH)
@pytest.mark.parametrize("reweighted", [False, True])
def test_findings_all_positive_all_negative_or_unknown_leave_it_finite(task: str, name: str, reweighted: bool) -> None:
    """Folds of one class, and logits far out."""
    real = torch.tensor([[1.0, 0, NAN, 1], [1, 0, NAN, 0]])
    logits = torch.tensor([[80.0, -80, 0, 3], [-80, 80, 0, -3]], requires_grad=True)
    labels = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    of = loss(name, real, task, reweighted)
    assert of(logits, labels, torch.ones(2)).isfinite()
    assert gradient(of, logits, labels, torch.ones(2)).isfinite().all()


@pytest.mark.parametrize("name", MULTI)
def test_the_known_labels_are_averaged_alone(name: str) -> None:
    """Equals the plain mean over known entries, computed one by one."""
    logits, labels, weights = case(3, rows=8)
    of = loss(name, REAL)
    one = torch.ones(1, dtype=torch.float64)
    parts = []
    for i, k in (~labels.isnan()).nonzero().tolist():
        alone = torch.full((1, 3), NAN, dtype=torch.float64)
        alone[0, k] = labels[i, k]
        parts.append(weights[i] * of(logits[i : i + 1], alone, one))
    assert of(logits, labels, weights).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-9)


@pytest.mark.parametrize(("task", "name"), BOTH)
@given(seed=st.integers(0, 2**20), share=st.floats(0, 1))
def test_the_loss_of_mixed_labels_is_the_mix_of_losses(task: str, name: str, seed: int, share: float) -> None:
    logits, a, weights = classes(seed)
    b = classes(seed + 1)[1]
    of = partial(loss(name, LONG, task), logits.detach())
    want = (1 - share) * of(a, weights) + share * of(b, weights)
    torch.testing.assert_close(of((1 - share) * a + share * b, weights), want)


@pytest.mark.parametrize(("task", "name"), BOTH)
def test_a_row_pulls_as_its_weight_says(task: str, name: str) -> None:
    logits, labels, weights = classes(4)
    of = loss(name, LONG, task)
    first = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    alone = gradient(of, logits, labels, first)
    torch.testing.assert_close(gradient(of, logits, labels, weights + 2 * first)[0], 3 * alone[0])
    assert (alone[1:] == 0).all()


def test_balanced_by_hand() -> None:
    """pos_weight = N_c / (n_c K): finding 0 has 4 known, 2 positive, K = 2 -> 1; finding 1 has 3 known, 1 -> 1.5."""
    real = torch.tensor([[1.0, 0], [0, 0], [0, 1], [1, NAN]])
    torch.testing.assert_close(positive_weights(real), torch.tensor([1.0, 1.5]))
    logits, labels = torch.tensor([[0.4, -0.2]]), torch.tensor([[0.0, 1.0]])
    want = (math.log(1 + math.exp(0.4)) + 1.5 * math.log(1 + math.exp(0.2))) / 2
    assert loss("balanced", real)(logits, labels, torch.ones(1)).item() == pytest.approx(want, rel=1e-6)


def test_class_weights_are_clipped_and_count_soft_labels() -> None:
    labels = torch.zeros(1000, 2)
    labels[0, 0] = 0.5
    labels[:, 1] = 1
    torch.testing.assert_close(positive_weights(labels, most=20), torch.tensor([20.0, 0.5]))
    torch.testing.assert_close(positive_weights(labels, most=1.5), torch.tensor([1.5, 1 / 1.5]))
    assert positive_weights(torch.zeros(5, 1), most=10).item() == 10


def test_plain_is_the_librarys_cross_entropy() -> None:
    logits, labels, weights = case(9)
    known = labels.isfinite()
    want = F.binary_cross_entropy_with_logits(logits[known], labels[known])
    torch.testing.assert_close(loss("plain", REAL)(logits, labels, torch.ones(5)), want)
    logits, labels, weights = classes(9)
    want = F.cross_entropy(logits, labels.argmax(1))
    torch.testing.assert_close(loss("plain", LONG, "single-label")(logits, labels, weights), want)


def test_effective_numbers_by_hand_and_at_both_ends() -> None:
    """LDAM-DRW's code, four lines of numpy, and the limits of eq. 2: beta 0 weighs none, beta 1 by frequency."""
    number = np.array([5000.0, 300, 12])
    each = (1 - 0.9999) / (1 - np.power(0.9999, number))
    want = torch.from_numpy(each / each.sum() * 3)
    torch.testing.assert_close(effective_weights(torch.from_numpy(number)), want)
    assert effective_weights(torch.from_numpy(number), 0.0).tolist() == [1.0, 1.0, 1.0]
    inverse = torch.from_numpy(1 / number / (1 / number).mean())
    torch.testing.assert_close(effective_weights(torch.from_numpy(number), 1 - 1e-9), inverse, rtol=1e-4, atol=0)
    assert effective_weights(torch.tensor([10.0, 0, 10])).tolist() == [1.0, 1.0, 1.0]
    assert effective_weights(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_class_balanced_weighs_the_classes_of_the_softmax_and_the_two_of_each_sigmoid() -> None:
    logits, labels, weights = classes(5)
    v = effective_weights(torch.tensor([90.0, 9, 1], dtype=torch.float64))
    each = F.cross_entropy(logits, labels.argmax(1), reduction="none") * v[labels.argmax(1)]
    torch.testing.assert_close(loss("class_balanced", LONG, "single-label")(logits, labels, weights), each.mean())
    total = 0.0
    for k, positives in enumerate((90.0, 9.0, 1.0)):
        pair = effective_weights(torch.tensor([positives, 100 - positives], dtype=torch.float64))
        for z, y in zip(logits[:, k], labels[:, k], strict=True):
            total = total + (-pair[0] * z.sigmoid().log() if y == 1 else -pair[1] * (-z).sigmoid().log())
    torch.testing.assert_close(loss("class_balanced", LONG)(logits, labels, weights), total / labels.numel())


@pytest.mark.parametrize("task", list(LOSSES))
def test_deferred_weights_make_plain_class_balanced_and_multiply_any_other(task: str) -> None:
    logits, labels, weights = classes(6)
    later = loss("plain", LONG, task, reweighted=True)(logits, labels, weights)
    torch.testing.assert_close(later, loss("class_balanced", LONG, task)(logits, labels, weights))
    rare, common = (torch.eye(3, dtype=torch.float64)[[k]] for k in (2, 0))
    z, one = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for name in LOSSES[task]:
        first, then = (loss(name, LONG, task, flag) for flag in (False, True))
        assert then(z, rare, one) / first(z, rare, one) > 1
        if task == "single-label":
            assert then(z, common, one) / first(z, common, one) < 1


def test_focal_is_its_formula_and_without_gamma_cross_entropy() -> None:
    logits, labels, weights = classes(7)
    p, log_p = logits.softmax(1), logits.log_softmax(1)
    at = labels.argmax(1)[:, None]
    want = (-((1 - p) ** 2) * log_p).gather(1, at).mean()
    torch.testing.assert_close(loss("focal", LONG, "single-label")(logits, labels, weights), want)
    torch.testing.assert_close(softmax_focal(logits, labels, ones(3), 0.0), -log_p.gather(1, at))
    p_t = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(loss("focal", LONG)(logits, labels, weights), (-((1 - p_t) ** 2) * p_t.log()).mean())
    plain = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(focal(logits, labels, ones(3), 0.0), plain)


def test_ldam_is_the_authors_loss_and_its_margins_fall_with_the_fourth_root() -> None:
    number = [90.0, 9.0, 1.0]
    m = 1.0 / np.sqrt(np.sqrt(number))
    m = m * (0.5 / m.max())
    torch.testing.assert_close(margins(torch.tensor(number, dtype=torch.float64)), torch.from_numpy(m))
    logits, labels, weights = classes(8)
    cosines = logits.tanh()
    rows = []
    for cosine, label in zip(cosines, labels.argmax(1), strict=True):
        lowered = cosine.clone()
        lowered[label] = lowered[label] - m[label]
        rows.append(F.cross_entropy(30 * lowered[None], label[None]))
    of = loss("ldam", LONG, "single-label")
    torch.testing.assert_close(of(SCALE * cosines, labels, weights), torch.stack(rows).mean())
    assert margins(torch.tensor([16.0, 0, 1])).tolist() == [0.25, 0.5, 0.5]
    assert margins(torch.zeros(2)).tolist() == [0.5, 0.5]


def test_ldam_with_sigmoids_asks_for_a_margin_on_either_side() -> None:
    real = torch.tensor([[1.0]] + [[0.0]] * 16)  # margins 0.5 and 0.25, times 30
    of, one = loss("ldam", real), torch.ones(1)
    above, below = (of(torch.tensor([[2.0]]), torch.tensor([[y]]), one).item() for y in (1.0, 0.0))
    assert above == pytest.approx(math.log(1 + math.exp(15 - 2)), rel=1e-6)
    assert below == pytest.approx(math.log(1 + math.exp(2 + 7.5)), rel=1e-6)


def test_logit_adjustment_by_hand_and_balanced_softmax_is_the_same_function() -> None:
    logits, labels, weights = classes(10)
    prior = torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64)
    want = F.cross_entropy(logits + prior.log(), labels.argmax(1))
    adjusted, balanced = (loss(name, LONG, "single-label") for name in ("logit_adjusted", "balanced_softmax"))
    torch.testing.assert_close(adjusted(logits, labels, weights), want)
    number = torch.tensor([90.0, 9, 1], dtype=torch.float64)
    p = number * logits.exp() / (number * logits.exp()).sum(1, keepdim=True)  # arXiv 2007.10740, its softmax
    want = -(p.log() * labels).sum(1).mean()
    torch.testing.assert_close(balanced(logits, labels, weights), want)
    want = F.binary_cross_entropy_with_logits(logits + (prior / (1 - prior)).log(), labels)
    torch.testing.assert_close(loss("logit_adjusted", LONG)(logits, labels, weights), want)


@pytest.mark.parametrize("task", list(LOSSES))
def test_what_minimises_the_adjusted_loss_knows_no_prior(task: str) -> None:
    """An image that says nothing: the best plain logits give the prior, the best adjusted ones give even odds."""
    for name, even in (("plain", False), ("logit_adjusted", True)):
        z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([z], line_search_fn="strong_wolfe", max_iter=200, tolerance_grad=1e-10)
        of = loss(name, LONG, task)

        def closure(of: Loss = of, z: Tensor = z, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = of(z.expand(100, 3), LONG, torch.ones(100, dtype=torch.float64))
            value.backward()
            return value

        optimizer.step(closure)
        p = z.detach().softmax(1) if task == "single-label" else z.detach().sigmoid()
        best = (1 / 3 if task == "single-label" else 0.5) if even else torch.tensor([[0.9, 0.09, 0.01]]).double()
        torch.testing.assert_close(p, torch.ones_like(p) * best, atol=1e-4, rtol=0)


def test_priors_stay_finite_half_an_example_from_nothing() -> None:
    real = torch.tensor([[1.0, 0, NAN], [1, 0, NAN]])
    torch.testing.assert_close(log_odds(real), torch.tensor([math.log(4), -math.log(4), 0.0]))
    assert log_prior(torch.tensor([[1.0, 0], [1, 0]])).exp().tolist() == pytest.approx([0.8, 0.2])


def test_asymmetric_without_focus_or_margin_is_cross_entropy_and_with_a_margin_forgets_easy_negatives() -> None:
    logits, labels, _ = classes(9)
    plain = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(asymmetric(logits, labels, ones(3), 0, 0, 0), plain)
    of, one = loss("asymmetric", REAL[:, :1]), torch.ones(1)
    easy = torch.full((1, 1), -4.0, requires_grad=True)  # p = 0.018 < margin
    assert of(easy, torch.zeros(1, 1), one) == 0
    far = of(torch.tensor([[90.0]]), torch.zeros(1, 1), one)
    assert far.item() == pytest.approx(-math.log(0.05) * 0.95**4, rel=1e-4)


def test_an_unknown_loss_or_task_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"'poly' for the multi-label task; choose one of .*logit_adjusted"):
        loss("poly", REAL)
    with pytest.raises(InputError, match=r"'asymmetric' for the single-label.*balanced_softmax"):
        loss("asymmetric", REAL, "single-label")
    with pytest.raises(InputError, match="'balanced_softmax' for the multi-label"):
        loss("balanced_softmax", REAL)
    with pytest.raises(InputError, match="multi-label, single-label"):
        loss("plain", REAL, "ordinal")
