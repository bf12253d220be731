"""Guidance and sampling against a mixture of Gaussians, whose denoiser is known in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medlt.chance import noise_like
from medlt.diffusion import schedulers
from medlt.diffusion.guidance import ascend, compose, contrast, only_at
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_latent, from_noise, sample
from medlt.diffusion.signals import minority
from medlt.testing import Mixture, constant_denoiser, constant_signal, label_backbone
from medlt.types import Denoiser, Guidance, InputError

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


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "dpm++sde", "unipc", "tcd"])
def test_sampler_recovers_a_known_distribution(name: str) -> None:
    x = draw(MIXTURE, name=name)
    torch.testing.assert_close(MIXTURE.fractions(x).double(), MIXTURE.weights, atol=0.04, rtol=0)
    big = x[(x - MEANS[0]).norm(dim=1) < 1.5]
    torch.testing.assert_close(big.mean(0), MEANS[0], atol=0.05, rtol=0)
    assert 0.15 < float(big.std(0).mean()) < 0.3  # of 0.25


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_constant_denoiser_is_returned_exactly(name: str, steps: int) -> None:
    scheduler, c = schedulers.scheduler(name, steps), torch.full((3, 2), 1.5).double()
    start = from_noise(noise(range(3)), scheduler)
    assert torch.equal(sample(constant_denoiser(c), start, scheduler, range(3)), c)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_an_image_depends_on_its_seed_not_on_its_batch(name: str) -> None:
    def run(seeds: list[int]) -> Tensor:
        scheduler = schedulers.scheduler(name, 10)
        return sample(MIXTURE, from_noise(noise(seeds), scheduler), scheduler, seeds)

    torch.testing.assert_close(run([3, 1, 4, 5]), torch.cat([run([seed]) for seed in (3, 1, 4, 5)]))


@pytest.mark.parametrize("name", ["ddpm", "lcm", "tcd", "dpm++sde"])
def test_a_scheduler_that_draws_noise_asks_for_seeds(name: str) -> None:
    scheduler = schedulers.scheduler(name, 4)
    with pytest.raises(ValueError, match="one seed a row"):
        sample(MIXTURE, from_noise(noise(range(2)), scheduler), scheduler)


def test_noise_on_the_way_is_not_the_starts_though_the_seeds_are() -> None:
    """lcm keeps nothing of x but its x0 estimate, here 0: what is left of unit variance after a step is new noise."""
    seen: list[Tensor] = []

    def zero(x: Tensor, t: int) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    scheduler, seeds = schedulers.scheduler("lcm", 4), list(range(3))
    sample(zero, from_noise(noise_like(seeds, (1000,)), scheduler), scheduler, seeds)
    for row in range(3):
        together = torch.corrcoef(torch.stack([x[row] for x in seen]))
        assert (together - torch.eye(4)).abs().max() < 0.15


@pytest.mark.parametrize("name", ["lcm", "tcd"])
@pytest.mark.parametrize("steps", [51, 75, 600])
def test_more_steps_than_a_distillation_has_are_spread_over_the_whole_schedule(name: str, steps: int) -> None:
    expected = schedulers.scheduler("ddim", steps).timesteps
    assert (schedulers.scheduler(name, steps).timesteps - expected).abs().max() <= 1


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


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_few_step_start_keeps_the_mode_and_restores_its_spread(name: str) -> None:
    scheduler = schedulers.scheduler(name, 50)
    z = 0.8 * MEANS[2].expand(600, 2)
    start = from_latent(z, noise(range(600)), scheduler, keep=10)
    y = sample(MIXTURE, start, scheduler, range(600, 1200))
    assert MIXTURE.fractions(y)[2] > 0.95
    assert y.std(0).min() > 0.2


def test_a_start_without_renoising_hands_the_latent_over() -> None:
    scheduler = schedulers.scheduler("ddim", 75)
    z = noise(range(3))
    plain, noised = (from_latent(z, noise(range(3, 6)), scheduler, 5, renoise=flag) for flag in (False, True))
    assert plain.x is z
    assert list(plain.timesteps) == list(noised.timesteps) == scheduler.timesteps[-5:].tolist()
    a = ABAR[noised.timesteps[0]]
    torch.testing.assert_close(noised.x, a.sqrt() * z + (1 - a).sqrt() * noise(range(3, 6)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("keep", "level"), [(3, 0.16), (5, 0.23), (15, 0.47), (37, 0.83)])
def test_the_noise_level_of_the_published_few_steps(keep: int, level: float) -> None:
    """5 of 75 steps are a clean-up. The published levels count steps from 0; ours end at the last, a little higher."""
    scheduler = schedulers.scheduler("ddim", 75)
    start = from_latent(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), scheduler, keep)
    assert start.timesteps[0] == round(keep * 1000 / 75) - 1
    assert level - 0.01 < float(start.x[0, 0]) < level + 0.04


@pytest.mark.parametrize("keep", [0, 76, -1])
def test_a_start_beyond_the_schedule_is_refused(keep: int) -> None:
    scheduler = schedulers.scheduler("ddim", 75)
    with pytest.raises(ValueError, match=f"keep is {keep}"):
        from_latent(noise(range(3)), noise(range(3)), scheduler, keep)


def test_abar_is_that_of_the_schedulers() -> None:
    torch.testing.assert_close(
        STABLE_DIFFUSION.abar(), schedulers.scheduler("ddim", 10).alphas_cumprod, atol=2e-7, rtol=1e-4
    )


def test_an_unknown_scheduler_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'euler' is not known; use one of ddim, ddpm"):
        schedulers.factory("euler", 10)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_x0_space_equals_epsilon_space_for_stock_schedulers(name: str) -> None:
    denoiser = label_backbone(lambda x, t, condition: torch.tanh(1.3 * x), 1, prediction="epsilon").denoiser()

    def run(prediction: str, answer: Callable[[Tensor, int], Tensor]) -> Tensor:
        scheduler = schedulers.scheduler(name, 8)
        scheduler.register_to_config(prediction_type=prediction)
        x = noise([0], (4, 8, 8))
        for t in scheduler.timesteps.tolist():
            extra = {"generator": torch.Generator().manual_seed(t)} if schedulers.draws_noise(scheduler) else {}
            x = scheduler.step(answer(x, t), t, x, **extra).prev_sample
        return x

    torch.testing.assert_close(
        run("sample", denoiser), run("epsilon", lambda x, t: torch.tanh(1.3 * x)), atol=2e-4, rtol=2e-4
    )


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
