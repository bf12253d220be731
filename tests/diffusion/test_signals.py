"""The minority metric on a mixture of Gaussians: what it ranks, and what its gradient goes through."""

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.signals import between, l2, minority, own_noise
from medlt.testing import Mixture

ABAR = STABLE_DIFFUSION.abar().double()
MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.5], [-1.0, -2.5]]).double()
MIXTURE = Mixture(torch.tensor([0.90, 0.09, 0.01]).double(), MEANS, 0.25, ABAR)


def some(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(x: Tensor, x0: Tensor | None = None, still: bool = True) -> Tensor:
    """d(x0(x_t), x0(x_s)) at t = 500, written out; the second estimate is held constant, or not."""
    x0 = MIXTURE(x, 500) if x0 is None else x0
    noise = own_noise(range(len(x)), "probe")(x, 500)
    there = ABAR[800].sqrt() * x0 + (1 - ABAR[800]).sqrt() * noise
    pulled = MIXTURE(there.detach() if still else there, 800)
    return (x0 - pulled).pow(2).sum(1).sqrt()


def test_the_gradient_is_that_of_the_first_estimate_alone() -> None:
    x = some(8).requires_grad_()
    signal = minority(MIXTURE, own_noise(range(8), "probe"), ABAR, 800)
    value = signal(MIXTURE(x, 500), 500)
    (g,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(value, measured(x))
    (stopped,) = torch.autograd.grad(measured(x).sum(), x)
    (full,) = torch.autograd.grad(measured(x, still=False).sum(), x)
    torch.testing.assert_close(g, stopped)
    assert float((g - full).abs().max()) > 0.01 * float(full.abs().max())


def test_planted_outliers_rank_first() -> None:
    common = MEANS[0] + 0.25 * some(300)
    planted = torch.cat([MEANS[2] + 0.25 * some(20, 1), torch.tensor([-3.0, -0.5]) + 0.25 * some(20, 2)])
    x0 = torch.cat([common, planted])
    value = minority(MIXTURE, own_noise(range(len(x0)), "probe"), ABAR, 800)(x0, 0)
    assert roc_auc_score([0] * 300 + [1] * 40, value) > 0.99


def test_noise_is_the_rows_own_and_changes_with_the_timestep_and_the_stream() -> None:
    x = torch.zeros(3, 4, 5, dtype=torch.float64)
    noise = own_noise([7, 8, 9], "probe")
    together = noise(x, 300)
    assert together.dtype == torch.float64
    assert torch.equal(own_noise([9, 7], "probe")(x[:2], 300), together[[2, 0]])
    for other in (noise(x, 299), own_noise([7, 8, 9], "sketch")(x, 300), own_noise([1, 2, 3], "probe")(x, 300)):
        assert not bool(torch.isclose(other, together).any())


def test_a_distance_of_features_is_l2_of_what_they_say_with_one_side_constant() -> None:
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double()
    x, y = torch.zeros(1, 2).double().requires_grad_(), torch.ones(1, 2).double().requires_grad_()
    distance = between(lambda z: z @ matrix)(x, y)
    assert distance.tolist() == [5.0]
    assert torch.equal(distance, l2(x @ matrix, y @ matrix))
    gx, gy = torch.autograd.grad(distance.sum(), (x, y), allow_unused=True)
    torch.testing.assert_close(gx, torch.tensor([[-9 / 5, -16 / 5]]).double())
    assert gy is None


def test_an_estimate_that_is_its_own_copy_has_no_gradient_rather_than_none_at_all() -> None:
    x = some(2).requires_grad_()
    (g,) = torch.autograd.grad(minority(lambda z, t: x.detach(), own_noise([1, 2], "a"), ABAR, 800)(x * 1, 5).sum(), x)
    assert g.tolist() == [[0.0, 0.0], [0.0, 0.0]]
