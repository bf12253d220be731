"""Guidance and sampling against a mixture of Gaussians, whose denoiser is known in closed form."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from medlt.config import Fusion
from medlt.diffusion import schedulers
from medlt.diffusion.backbone import ClassifierFree
from medlt.diffusion.guidance import (
    Weighting,
    ascend,
    compose,
    contrast,
    every_nth,
    keep,
    levels,
    mean_shifts,
    only_at,
)
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_latent, from_noise, last_steps, sample
from medlt.diffusion.signals import minority
from medlt.rng import torch_generator
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
    signal = minority(MIXTURE, lambda x, t: noise(range(len(x)), tuple(x.shape[1:])), ABAR, 900)
    tail = [float(MIXTURE.fractions(draw(ascend(signal, w, ABAR)(MIXTURE), 800))[2]) for w in (0.0, 0.25, 0.5)]
    assert tail[0] < tail[1] < tail[2]


def posterior(a: float, b: float) -> tuple[float, float, float]:
    """Shares of x0 and x_t in the mean of q(x_u | x_t, x0), and its variance (arXiv 2006.11239, Eq. 7)."""
    alpha = a / b
    return b**0.5 * (1 - alpha) / (1 - a), alpha**0.5 * (1 - b) / (1 - a), (1 - b) / (1 - a) * (1 - alpha)


@pytest.mark.parametrize("weighting", ["variance", "fixed", "switch-off"])
def test_an_x0_shift_moves_the_posterior_mean_as_published(weighting: Weighting) -> None:
    timesteps = schedulers.evaluations(schedulers.scheduler("ddpm", 20))
    shift = mean_shifts(timesteps, ABAR, weighting, switch=0.5)
    for t, u in pairwise(timesteps):
        share, _, variance = posterior(float(ABAR[int(t)]), float(ABAR[int(u)]))
        published = variance if weighting == "variance" else float(weighting == "fixed" or t > 500)
        assert share * shift(int(t)) == pytest.approx(published, rel=1e-9)
    assert shift(int(timesteps[-1])) == (1 if weighting == "fixed" else 0)


def test_many_small_steps_make_the_shift_of_the_mean_a_shift_of_the_score() -> None:
    """With b -> a the variance weighting is Tweedie's (1 - abar) / sqrt(abar), whatever the sampler."""
    shift = mean_shifts(range(999, -1, -1), ABAR)
    tweedie = (1 - ABAR) / ABAR.sqrt()
    assert [shift(t) for t in range(100, 1000, 100)] == pytest.approx(tweedie[100::100].tolist(), rel=0.03)


def slow(weighting: Weighting, weight: float, every: int, rows: int, steps: int) -> Tensor:
    """Ancestral sampling as published: the gradient moves the posterior mean; nothing of medlt's guidance is used."""
    timesteps = [int(t) for t in schedulers.evaluations(schedulers.scheduler("ddpm", steps))]
    draws = [torch_generator("step noise", seed) for seed in range(rows)]
    x, guided = noise(range(rows)), timesteps[::every]
    for t, u in pairwise(timesteps):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = MIXTURE(leaf, t)
            there = ABAR[800].sqrt() * x0.detach() + (1 - ABAR[800]).sqrt() * noise(range(t, t + rows))
            (g,) = torch.autograd.grad((x0 - MIXTURE(there, 800).detach()).norm(dim=1).sum(), leaf)
        share, rest, variance = posterior(float(ABAR[t]), float(ABAR[u]))
        size = {"variance": variance, "fixed": 1.0, "switch-off": float(t > 500)}[weighting] * (t in guided)
        mean = share * x0.detach() + rest * x + weight * size * g / g.abs().amax(1, keepdim=True)
        x = mean + variance**0.5 * torch.cat([torch.randn(1, 2, generator=d, dtype=x.dtype) for d in draws])
    return MIXTURE(x, timesteps[-1])


@pytest.mark.parametrize(("weighting", "weight"), [("variance", 0.6), ("fixed", 0.02), ("switch-off", 0.02)])
def test_guidance_in_x0_space_is_the_published_shift_of_the_mean_under_ddpm(
    weighting: Weighting, weight: float
) -> None:
    scheduler = schedulers.scheduler("ddpm", 25)
    start = from_noise(noise(range(40)), scheduler)
    signal = minority(MIXTURE, lambda x, t: noise(range(t, t + len(x))), ABAR, 800)
    pushed = ascend(signal, weight, ABAR, shift=mean_shifts(start.timesteps, ABAR, weighting))
    at = every_nth(start.timesteps[:-1], 3, (0, 1), 1000)
    ours = sample(only_at(pushed, at)(MIXTURE), start, scheduler, range(40))
    expected = slow(weighting, weight, 3, 40, 25)
    assert float((expected - slow(weighting, 0, 3, 40, 25)).abs().max()) > 0.05  # there is something to see
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_guided_levels_are_counted_inside_the_window_and_a_level_asked_twice_counts_once() -> None:
    assert sorted(every_nth(range(990, -1, -10), 5, (0.3, 0.8), 1000), reverse=True) == list(range(800, 299, -50))
    assert every_nth([999.5, 500.4, 100], 1, (0.4, 0.6), 1000) == {500}
    heun = schedulers.evaluations(schedulers.scheduler("heun", 10))
    assert levels(heun) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert every_nth(heun, 2, (0, 1), 1000) == {999, 799, 599, 399, 199}
    between = schedulers.evaluations(schedulers.scheduler("kdpm2", 5))  # a step is taken by what is seen half-way
    assert [t == round(t) for t in between] == [True, False] * 4 + [True]
    assert every_nth(between, 2, (0, 1), 1000) == {round(between[i]) for i in (0, 1, 4, 5, 8)}
    fractional = schedulers.evaluations(schedulers.scheduler("euler", 61))
    assert len(every_nth(fractional, 1, (0, 1), 1000)) == 61
    assert every_nth([500.4, 499.6], 1, (0, 1), 1000) == {500}


def test_what_the_metric_is_of_may_differ_from_what_is_pushed() -> None:
    x, t = noise(range(6)), 400
    pushed = ascend(lambda x0, t: x0.sum(1), 1.0, ABAR, signal_denoiser=FLAT, shift=lambda t: 1.0)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(FLAT(leaf, t).sum(), leaf)
    torch.testing.assert_close(pushed(MIXTURE)(x, t), MIXTURE(x, t) + g / g.abs().amax(1, keepdim=True))


def test_fading_is_a_share_of_each_row_alone_and_no_share_is_the_bare_estimate() -> None:
    x, share = noise(range(4)), torch.tensor([0.0, 0.25, 1.0, 0.0]).double()
    full = ascend(lambda x0, t: x0.sum(1), 0.5, ABAR)(MIXTURE)(x, 500) - MIXTURE(x, 500)
    faded = ascend(lambda x0, t: x0.sum(1), 0.5, ABAR, fade=lambda value, t: share)(MIXTURE)(x, 500)
    torch.testing.assert_close(faded - MIXTURE(x, 500), share[:, None] * full)
    assert torch.equal(faded[[0, 3]], MIXTURE(x, 500)[[0, 3]])


def test_boost_one_and_skip_none_are_the_plain_start() -> None:
    for name in schedulers.NAMES:
        plain, said = (schedulers.scheduler(name, 10) for _ in range(2))
        first, second = (
            from_noise(noise(range(3)), plain),
            from_noise(noise(range(3)), said, initial_noise_scale=1.0, skip_steps=0),
        )
        assert torch.equal(first.x, second.x)
        assert first.timesteps == second.timesteps == schedulers.evaluations(plain)


@pytest.mark.parametrize("name", ["ddpm", "euler_a"])
@pytest.mark.parametrize(("boost", "skip"), [(1.0, 0), (3.0, 0), (3.0, 10)])
def test_a_boosted_gaussian_has_the_spread_that_ancestral_steps_leave(name: str, boost: float, skip: int) -> None:
    """For x0 ~ N(0, s^2) every ancestral step is linear, so the variance obeys a recursion from boost^2 on."""
    gaussian, rows = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.5, ABAR), 3000
    scheduler = schedulers.scheduler(name, 25)
    start = from_noise(noise(range(rows)), scheduler, initial_noise_scale=boost, skip_steps=skip)
    whole = schedulers.evaluations(schedulers.scheduler(name, 25))
    assert start.timesteps == whole[skip:]
    begun = scheduler.scale_model_input(start.x, start.timesteps[0])  # as x_t: unit noise, boosted, wherever it begins
    torch.testing.assert_close(begun, boost * noise(range(rows)), rtol=0.01, atol=1e-6)
    spread = sample(gaussian, start, scheduler, range(rows)).var()
    one, variance = torch.ones(1, 2).double(), boost**2
    for t, u in pairwise([round(t) for t in start.timesteps]):
        share, rest, drawn = posterior(float(ABAR[t]), float(ABAR[u]))
        variance = (share * float(gaussian(one, t)[0, 0]) + rest) ** 2 * variance + drawn
    expected = float(gaussian(one, u)[0, 0]) ** 2 * variance
    assert float(spread) == pytest.approx(expected, rel=0.08)
    if skip:
        assert expected > 1.1 * 0.25  # without a boost these few steps leave less than the 0.25 of the data


def test_boosting_is_refused_where_it_would_scale_the_whole_image() -> None:
    for name in ("ddim", "dpm++", "heun"):
        with pytest.raises(InputError, match="such as ddpm, euler_a"):
            from_noise(noise(range(2)), schedulers.scheduler(name, 10), initial_noise_scale=2.0)
    for skip in (-1, 10):
        with pytest.raises(InputError, match="leave out 0 to 9"):
            from_noise(noise(range(2)), schedulers.scheduler("ddpm", 10), skip_steps=skip)
    with pytest.raises(InputError, match="initial_noise_scale 0"):
        from_noise(noise(range(2)), schedulers.scheduler("ddpm", 10), initial_noise_scale=0.0)


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


@pytest.mark.parametrize(
    ("interval", "guided"),
    [((0.0, 1.0), 10), ((0.25, 0.65), 4), ((0.3, 0.5), 2), ((0.95, 1.0), 1), ((0.0, 0.05), 0), ((1.0, 1.0), 0)],
)
def test_the_unconditional_network_is_called_inside_the_interval_only(
    interval: tuple[float, float], guided: int
) -> None:
    """Ten steps at t = 999, 899, ... 99: rows are counted step by step, and every estimate is that of its side."""
    sizes: list[int] = []
    backbone = label_backbone(lambda x, t, c: (sizes.append(len(x)), said(x, t, c))[1], 2)
    condition, x = backbone.condition(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])), noise([1, 2, 3]).float()
    limited, bare = backbone.guided(condition, 3.5, interval), backbone.denoiser(condition)
    everywhere = contrast(backbone.denoiser(), 3.5)(bare)
    steps = [round(t) for t in from_noise(x, schedulers.scheduler("ddim", 10)).timesteps]
    for t in steps:
        inside = interval[0] * 1000 <= t <= interval[1] * 1000
        assert torch.equal(limited(x, t), (everywhere if inside else bare)(x, t))
    sizes.clear()
    built = schedulers.scheduler("ddim", 10)
    sample(limited, from_noise(x, built), built)
    assert (sizes.count(6), sizes.count(3)) == (guided, 10 - guided)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.5])
def test_the_whole_interval_is_guidance_everywhere_and_an_empty_one_is_none(weight: float) -> None:
    backbone = label_backbone(said, 2)
    condition = backbone.condition(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))

    def made(denoiser: Denoiser) -> Tensor:
        built = schedulers.scheduler("dpm++", 12)
        return sample(denoiser, from_noise(noise([4, 5]).float(), built), built)

    assert torch.equal(
        made(backbone.guided(condition, weight, (0.0, 1.0))),
        made(contrast(backbone.denoiser(), weight)(backbone.denoiser(condition))),
    )
    assert torch.equal(made(backbone.guided(condition, weight, (1.0, 1.0))), made(backbone.denoiser(condition)))
    with pytest.raises(InputError, match=r"guidance_interval is 0\.6 to 0\.4"):
        backbone.guided(condition, 3.5, (0.6, 0.4))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.6, 1.0)])
def test_classifier_free_guidance_takes_the_estimate_of_the_signal(interval: tuple[float, float]) -> None:
    """One conditional pass serves the signal and the sampler, and the estimate is that of two passes."""
    sizes: list[int] = []
    backbone = label_backbone(lambda x, t, c: (sizes.append(len(x)), said(x, t / 1000, c).sin())[1], 2)
    condition, x = backbone.condition(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), noise([1, 2]).float()
    bare = backbone.guided(condition, 3.5, interval)
    assert isinstance(bare, ClassifierFree)

    def guided(source: Denoiser) -> Tensor:
        return ascend(lambda x0, t: x0.square().sum(1), 0.5, ABAR, signal_denoiser=source)(bare)(x, 500)

    apart = guided(backbone.denoiser(condition))
    sizes.clear()
    shared = guided(bare.conditional)
    assert sizes == ([2, 2] if interval[0] == 0 else [2])
    assert float((shared - bare(x, 500)).abs().max()) > 0.1
    torch.testing.assert_close(shared, apart, rtol=1e-6, atol=1e-6)


def test_fusion_refines_with_the_conditional_network_alone_by_default() -> None:
    """Its 5 of 75 steps lie below its interval; half of the schedule does not."""
    chosen, sizes = Fusion(), list[int]()
    backbone = label_backbone(lambda x, t, c: (sizes.append(len(x)), said(x, t / 1000, c))[1], 1)
    denoiser = backbone.guided(backbone.condition(torch.ones(2, 1)), chosen.guidance_scale, chosen.guidance_interval)
    for strength, twice in ((chosen.strength, False), (0.5, True)):
        built = schedulers.scheduler(chosen.scheduler, chosen.num_inference_steps)
        z = noise([1, 2]).float()
        steps = last_steps(strength, chosen.num_inference_steps)
        sizes.clear()
        sample(denoiser, from_latent(z, noise([3, 4]).float(), built, steps), built)
        assert len(sizes) == steps
        assert (4 in sizes) is twice


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "unipc", "heun", "euler_a", "lcm"])
def test_keep_ends_at_the_known_latent_bit_for_bit(name: str) -> None:
    """Of each mean of the mixture the second coordinate is known, and the first is free."""
    known = MEANS[torch.arange(30) % 3]
    mask = torch.tensor([[False, True]])
    scheduler = schedulers.scheduler(name, 20)
    start = from_latent(known, noise(range(30)), scheduler, 16)
    made = sample(keep(mask, known)(MIXTURE), start, scheduler, range(30))
    assert torch.equal(made[:, 1], known[:, 1])
    assert not torch.equal(made[:, 0], known[:, 0])


def test_keep_passes_through_the_known_latent_at_the_noise_of_each_level() -> None:
    """x_t = sqrt(abar) z + sqrt(1 - abar) n at every step of DDIM, with the noise n of the start."""
    known, n, seen = MEANS, noise(range(3)), dict[int, Tensor]()
    mask = torch.tensor([[False, True]])

    def spied(x_t: Tensor, t: int) -> Tensor:
        seen[t] = x_t
        return MIXTURE(x_t, t)

    scheduler = schedulers.scheduler("ddim", 20)
    sample(keep(mask, known)(spied), from_latent(known, n, scheduler, 20), scheduler)
    assert len(seen) == 20
    for t, x_t in seen.items():
        expected = ABAR[t].sqrt() * known + (1 - ABAR[t]).sqrt() * n
        torch.testing.assert_close(x_t[:, 1], expected[:, 1], atol=1e-6, rtol=1e-6)


def test_what_is_free_under_keep_follows_what_is_known() -> None:
    """The second coordinate of one mean is known, and from pure noise the first becomes that mean's far more often."""
    scheduler, known = schedulers.scheduler("ddim", 50), MEANS[[2]].expand(300, 2)
    share = []
    for guidance in (keep(torch.tensor([[False, True]]), known), compose()):
        made = sample(guidance(FLAT), from_noise(noise(range(300)), scheduler), scheduler)
        share.append(float(((made[:, 0] - MEANS[2, 0]).abs() < 0.5).double().mean()))
    assert share[0] > 2 * share[1]
