"""The JEPA score where it is known in closed form, and its sketch against the whole Jacobian."""

import pytest
import torch
from torch import Tensor, nn

from medlt.diffusion.guidance import ascend
from medlt.diffusion.jepa import jepa, jepa_score
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.signals import own_noise
from medlt.testing import Mixture

ABAR = STABLE_DIFFUSION.abar().double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(seed: int = 0) -> nn.Module:
    """A convolutional network 2x6x6 -> 8, twice differentiable, in evaluation mode."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(216, 8), nn.Tanh())
    return nn.Sequential(*layers).double().eval()


def whole(features: nn.Module, x: Tensor) -> Tensor:
    """All singular values of the Jacobian of each row, the slow way: [B,D]."""
    rows = [torch.autograd.functional.jacobian(lambda z: features(z[None])[0], row).flatten(1) for row in x]
    return torch.linalg.svdvals(torch.stack(rows))


def test_a_linear_map_has_one_score_everywhere_and_guidance_does_nothing() -> None:
    matrix = normal(5, 3)
    x, sketch = normal(4, 5), normal(4, 3, 5, seed=1)
    score = jepa_score(lambda z: z @ matrix, x, sketch, top=3)
    torch.testing.assert_close(score, torch.linalg.svdvals(matrix).log().sum().expand(4))
    gaussian = Mixture(torch.ones(1).double(), torch.zeros(1, 5).double(), 0.5, ABAR)
    signal = jepa(lambda z: z @ matrix, own_noise(range(4), "sketch"))
    assert torch.equal(ascend(signal, 0.5, ABAR)(gaussian)(x, 300), gaussian(x, 300))


def test_a_diagonal_map_has_the_score_and_the_gradient_of_its_derivatives() -> None:
    """f_i = x_i + x_i^3 has J = diag(1 + 3 x^2): score sum log(1 + 3 x^2), gradient 6 x / (1 + 3 x^2)."""
    x = normal(6, 4).requires_grad_()
    score = jepa_score(lambda z: z + z**3, x, normal(6, 4, 4, seed=1), top=4)
    (g,) = torch.autograd.grad(score.sum(), x)
    torch.testing.assert_close(score, (1 + 3 * x**2).log().sum(1))
    torch.testing.assert_close(g, 6 * x / (1 + 3 * x**2))
    value = jepa(lambda z: z + z**3, own_noise(range(6), "sketch"), top=4, extra=0)(x, 10)
    torch.testing.assert_close(value, -score)


def test_a_sketch_of_everything_is_exact_and_a_small_one_close() -> None:
    network, x = small(), normal(3, 2, 6, 6)
    sigma = whole(network, x)
    full = jepa_score(network, x, normal(3, 8, 2, 6, 6, seed=1), top=8)
    torch.testing.assert_close(full, sigma.log().sum(1))
    part = jepa_score(network, x, normal(3, 5, 2, 6, 6, seed=1), top=3, powers=4)
    torch.testing.assert_close(part, sigma[:, :3].log().sum(1), rtol=0, atol=0.02)
    crude = jepa_score(network, x, normal(3, 5, 2, 6, 6, seed=1), top=3, powers=0)
    assert bool((crude < part).all())  # a subspace never stretches more than the whole


def test_the_gradient_is_that_of_finite_differences_where_the_subspace_is_everything() -> None:
    network, x, sketch = small(), normal(2, 2, 6, 6), normal(2, 8, 2, 6, 6, seed=1)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(jepa_score(network, leaf, sketch, top=2).sum(), leaf)
    step = 1e-5 * normal(2, 2, 6, 6, seed=3)
    up, down = (whole(network, x + sign * step)[:, :2].log().sum(1) for sign in (1, -1))
    torch.testing.assert_close((g * step).flatten(1).sum(1), (up - down) / 2, rtol=1e-4, atol=0)


def test_a_row_has_its_own_score_bit_for_bit_and_weights_get_no_gradient() -> None:
    network, x = small(), normal(4, 2, 6, 6)
    together = jepa(network, own_noise([5, 6, 7, 8], "sketch"))(x, 40)
    turned = jepa(network, own_noise([8, 7, 6, 5], "sketch"))(x.flip(0), 40)
    assert torch.equal(together, turned.flip(0))
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("steepness", [0.0, 2.0])
def test_guidance_goes_where_features_are_flat(steepness: float) -> None:
    """Features x + steepness x^2 / 2 stretch by 1 + steepness x: rare is to the left, nowhere if they are linear."""
    gaussian = Mixture(torch.ones(1).double(), torch.full((1, 1), 2.0).double(), 0.5, ABAR)
    signal = jepa(lambda z: z + steepness * z**2 / 2, own_noise(range(3), "sketch"), top=1, extra=0)
    x = normal(3, 1)
    moved = ascend(signal, 0.1, ABAR, shift=lambda t: 1.0)(gaussian)(x, 300) - gaussian(x, 300)
    torch.testing.assert_close(moved, torch.full_like(x, -0.1 if steepness else 0.0))
