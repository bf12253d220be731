"""Guidance and sampling against a mixture of Gaussians, whose denoiser is known in closed form."""

import pytest
import torch
from torch import Tensor

from medlt.diffusion import schedulers
from medlt.diffusion.guidance import ascend, compose, contrast, only_at
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.signals import minority
from medlt.testing import Mixture, constant_denoiser, constant_signal, label_backbone
from medlt.types import Denoiser, Guidance

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ABAR = STABLE_DIFFUSION.abar().double()
MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.5], [-1.0, -2.5]]).double()
MIXTURE = Mixture(torch.tensor([0.90, 0.09, 0.01]).double(), MEANS, 0.25, ABAR)
FLAT = Mixture(torch.ones(3).double() / 3, MEANS, 0.25, ABAR)


def noise(seeds: range | list[int], shape: tuple[int, ...] = (2,)) -> Tensor:
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return torch.stack(draws)


def draw(denoiser: Denoiser, n: int = 1500, steps: int = 30, name: str = "ddim") -> Tensor:
    scheduler = schedulers.scheduler(name, steps)
    return sample(denoiser, from_noise(noise(range(n)), scheduler), scheduler, range(n))


@pytest.mark.parametrize(
    "guidance",
    [
        ascend(lambda x0, t: x0.sum(1), 0.0, ABAR),
        ascend(constant_signal(3.0), 0.5, ABAR),
        contrast(FLAT, 1.0),
        only_at(contrast(FLAT, 0.0), set()),
        compose(),
    ],
    ids=["scale 0", "flat signal", "weight 1", "empty window", "nothing composed"],
)
def test_neutral_guidance_is_the_identity(guidance: Guidance) -> None:
    x = noise(range(5))
    assert torch.equal(guidance(MIXTURE)(x, 500), MIXTURE(x, 500))


def test_contrast_is_linear_in_its_weight_and_weight_0_is_the_other() -> None:
    x = noise(range(5))
    assert torch.equal(contrast(FLAT, 0.0)(MIXTURE)(x, 500), FLAT(x, 500))
    expected = FLAT(x, 500) + 3.5 * (MIXTURE(x, 500) - FLAT(x, 500))
    torch.testing.assert_close(contrast(FLAT, 3.5)(MIXTURE)(x, 500), expected)


def test_guidance_acts_inside_its_window_only() -> None:
    x, windowed = noise(range(5)), only_at(contrast(FLAT, 0.0), {500})(MIXTURE)
    assert torch.equal(windowed(x, 500), FLAT(x, 500))
    assert torch.equal(windowed(x, 499), MIXTURE(x, 499))


def test_compose_applies_the_first_guidance_innermost() -> None:
    def add(value: float) -> Guidance:
        return lambda denoiser: lambda x, t: denoiser(x, t) + value

    def double(denoiser: Denoiser) -> Denoiser:
        return lambda x, t: 2 * denoiser(x, t)

    x = torch.ones(1, 2)
    assert compose(add(1.0), double)(constant_denoiser(x))(x, 0).tolist() == [[4.0, 4.0]]
    assert compose(double, add(1.0))(constant_denoiser(x))(x, 0).tolist() == [[3.0, 3.0]]


def test_ascend_follows_tweedie_for_one_gaussian() -> None:
    """For x0 ~ N(0, s^2), x0(x_t) = k x_t, so the gradient of sum(x0) is k everywhere, 1 once normalised."""
    gaussian = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.5, ABAR)
    x, t, scale = noise(range(4)), 300, 0.7
    moved = ascend(lambda x0, t: x0.sum(1), scale, ABAR)(gaussian)(x, t) - gaussian(x, t)
    torch.testing.assert_close(moved, torch.full_like(moved, scale * float((1 - ABAR[t]) / ABAR[t].sqrt())))


def test_minority_guidance_moves_mass_to_the_tail_monotonically() -> None:
    signal = minority(MIXTURE, lambda x: noise(range(len(x)), tuple(x.shape[1:])), ABAR, 900)
    tail = [float(MIXTURE.fractions(draw(ascend(signal, w, ABAR)(MIXTURE), 800))[2]) for w in (0.0, 0.25, 0.5)]
    assert tail[0] < tail[1] < tail[2]


def test_contrast_moves_between_two_known_distributions() -> None:
    halfway = contrast(MIXTURE, 0.5)(FLAT)
    assert float(MIXTURE.fractions(draw(halfway, 800))[2]) > 3 * float(MIXTURE.fractions(draw(MIXTURE, 800))[2])


def said(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    return x * (1 + condition.sum(1)[:, None]) + t[:, None]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.5])
def test_classifier_free_guidance_in_one_forward_is_the_contrast_of_two(weight: float) -> None:
    calls: list[int] = []
    backbone = label_backbone(lambda x, t, c: (calls.append(len(x)), said(x, t, c))[1], 2)
    x, condition = (
        noise([1, 2, 3]).float(),
        backbone.condition(torch.tensor([[1.0, 0.0], [0.5, float("nan")], [0.0, 1.0]])),
    )
    expected = contrast(backbone.denoiser(), weight)(backbone.denoiser(condition))(x, 7)
    if weight == 0:
        expected = backbone.denoiser()(x, 7)
    calls.clear()
    assert torch.equal(backbone.guided(condition, weight)(x, 7), expected)
    assert calls == [3 if weight in (0, 1) else 6]
