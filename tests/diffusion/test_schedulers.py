"""Every scheduler against a mixture of Gaussians, whose denoiser is known in closed form, and against its own loop."""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from medlt.diffusion import schedulers
from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule
from medlt.diffusion.sampler import from_latent, from_noise, sample
from medlt.rng import noise_like
from medlt.testing import Mixture, constant_denoiser, label_backbone
from medlt.types import Denoiser, InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

ABAR = STABLE_DIFFUSION.abar().double()
MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.5], [-1.0, -2.5]]).double()
MIXTURE = Mixture(torch.tensor([0.90, 0.09, 0.01]).double(), MEANS, 0.25, ABAR)
DRAWING = ("ddpm", "euler_a", "kdpm2_a", "dpm++sde", "sa", "lcm", "tcd")
TWICE = ("heun", "kdpm2", "kdpm2_a")


def noise(seeds: range | list[int], shape: tuple[int, ...] = (2,)) -> Tensor:
    return noise_like(list(seeds), shape).double()


def draw(denoiser: Denoiser, n: int, steps: int, name: str) -> Tensor:
    scheduler = schedulers.scheduler(name, steps)
    return sample(denoiser, from_noise(noise(range(n)), scheduler), scheduler, range(n))


@pytest.mark.parametrize("name", [name for name in schedulers.NAMES if name != "lcm"])  # lcm wants a consistency model
def test_a_known_distribution_is_recovered_from_noise(name: str) -> None:
    x = draw(MIXTURE, 1000, 30, name)
    torch.testing.assert_close(MIXTURE.fractions(x).double(), MIXTURE.weights, atol=0.04, rtol=0)
    big = x[(x - MEANS[0]).norm(dim=1) < 1.5].double()
    torch.testing.assert_close(big.mean(0), MEANS[0], atol=0.05, rtol=0)
    assert 0.15 < float(big.std(0).mean()) < 0.3  # of 0.25


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_a_few_last_steps_keep_the_mode_and_restore_its_spread(name: str) -> None:
    scheduler = schedulers.scheduler(name, 50)
    z = 0.8 * MEANS[2].expand(400, 2)
    y = sample(MIXTURE, from_latent(z, noise(range(400)), scheduler, 10), scheduler, range(400, 800))
    near = y[(y - MEANS[2]).norm(dim=1) < 1.5]
    assert len(near) > 0.93 * len(y)
    assert 0.1 < near.std(0).min() <= near.std(0).max() < 0.32


@pytest.mark.parametrize("name", [name for name in schedulers.NAMES if name not in DRAWING])
def test_the_last_steps_alone_end_where_the_whole_run_does(name: str) -> None:
    """From the x that a fine run reaches half way, the last half of the steps goes on to the same image."""
    single, last_steps, n = Mixture(torch.ones(1).double(), MEANS[:1], 0.5, ABAR), 20, noise(range(64))
    scheduler = schedulers.scheduler(name, 40)
    t = round(schedulers.evaluations(scheduler, last_steps)[0])
    # one Gaussian: the probability flow keeps (x_t - sqrt(abar) m) / sd_t, so truth is known at every level
    spread = (ABAR[t] * 0.25 + 1 - ABAR[t]).sqrt()
    z = (spread * n - (1 - ABAR[t]).sqrt() * n) / ABAR[t].sqrt() + MEANS[0]
    y = sample(single, from_latent(z, n, scheduler, last_steps), scheduler)
    torch.testing.assert_close(y.double(), MEANS[0] + 0.5 * n, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_constant_denoiser_is_returned_exactly(name: str, steps: int) -> None:
    c = torch.full((3, 2), 1.5).double()
    assert torch.equal(draw(constant_denoiser(c), 3, steps, name), c)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_an_image_depends_on_its_seed_not_on_its_batch(name: str) -> None:
    def run(seeds: list[int]) -> Tensor:
        scheduler = schedulers.scheduler(name, 10)
        return sample(MIXTURE, from_noise(noise(seeds), scheduler), scheduler, seeds)

    torch.testing.assert_close(run([3, 1, 4, 5]), torch.cat([run([seed]) for seed in (3, 1, 4, 5)]))


def stock(name: str, network: Any, x: Tensor, steps: int) -> Tensor:
    """The loop of diffusers' own pipelines, for a network that says the noise."""
    scheduler = schedulers.scheduler(name, steps)
    scheduler.register_to_config(prediction_type="epsilon")
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        extra = {"generator": torch.Generator().manual_seed(round(float(t)))} if name in DRAWING else {}
        x = scheduler.step(network(scheduler.scale_model_input(x, t), round(float(t))), t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_x0_space_equals_the_stock_loop_in_epsilon_space(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what ours leaves out: the noise that some stock loops end with, so both are made to end in x0."""

    def network(x: Tensor, t: int) -> Tensor:
        return torch.tanh(1.3 * x) * (1 + t / 1000)

    x, steps = noise([0], (4, 8, 8)), 8
    ends: list[Tensor] = []

    def seen(x: Tensor, t: int) -> Tensor:
        out, a = network(x, t), ABAR[t]
        ends.append((x - (1 - a).sqrt() * out) / a.sqrt())
        return out

    stock(name, seen, x, steps)
    backbone = label_backbone(lambda x, t, condition: network(x, int(t[0])), 1, prediction="epsilon")
    scheduler = schedulers.scheduler(name, steps)
    start = from_noise(x, scheduler)
    place = iter(start.timesteps)
    original = scheduler.step

    def seeded(answer: Tensor, t: float, x: Tensor, **extra: Any) -> Any:
        if "generator" in extra:
            extra["generator"] = torch.Generator().manual_seed(round(next(place)))
        return original(answer, t, x, **extra)

    seeded.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(scheduler, "step", seeded)
    ours = sample(backbone.denoiser(), start, scheduler, [0])
    torch.testing.assert_close(ours.double(), ends[-1].double(), atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("name", ["euler", "heun", "kdpm2", "dpm++", "dpm++karras", "dpm++single", "unipc"])
def test_stock_and_ours_end_alike_where_the_stock_loop_ends_in_its_last_estimate(name: str) -> None:
    network = label_backbone(lambda x, t, condition: torch.tanh(1.3 * x), 1, prediction="epsilon")
    x, scheduler = noise([0], (4, 8, 8)), schedulers.scheduler(name, 8)
    ours = sample(network.denoiser(), from_noise(x, scheduler), scheduler)
    theirs = stock(name, lambda x, t: torch.tanh(1.3 * x), x, 8)
    torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 61, 75])
def test_evaluations_fall_from_the_noisiest_and_are_as_many_as_said(name: str, steps: int) -> None:
    scheduler = schedulers.scheduler(name, steps)
    asked = schedulers.evaluations(scheduler)
    assert len(asked) == (2 * steps - 1 if name in TWICE else steps + (name == "pndm" and steps > 1))
    assert asked == sorted(asked, reverse=True) or name == "kdpm2_a"  # whose half steps fall on whole ones
    assert min(asked) >= 0
    assert max(asked) == (999 if name != "sa" or steps != 61 else max(asked))
    for last_steps in {1, min(3, steps), steps}:
        kept = schedulers.evaluations(scheduler, last_steps)
        assert len(kept) == (2 * last_steps - 1 if name in TWICE else last_steps + (name == "pndm" and last_steps > 1))
        assert kept[-1] == asked[-1]


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "kdpm2", "kdpm2_a", "euler_a", "ddim", "dpm++karras"])
def test_the_denoiser_is_shown_x_t_of_unit_variance_at_whole_timesteps(name: str) -> None:
    """For x0 of unit variance x_t has unit variance at every level, whatever scale the scheduler keeps x in."""
    shown: list[tuple[Tensor, int]] = []
    unit = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 1.0, ABAR)

    def look(x: Tensor, t: int) -> Tensor:
        shown.append((x, t))
        return unit(x, t)

    draw(look, 2000, 12, name)
    assert all(isinstance(t, int) and 0 <= t < 1000 for _, t in shown)
    assert all(0.85 < float(x.std()) < 1.15 for x, _ in shown)


@pytest.mark.parametrize("name", DRAWING)
def test_a_scheduler_that_draws_noise_asks_for_seeds(name: str) -> None:
    scheduler = schedulers.scheduler(name, 4)
    with pytest.raises(ValueError, match="one seed for each row"):
        sample(MIXTURE, from_noise(noise(range(2)), scheduler), scheduler)


def test_just_those_schedulers_draw_noise() -> None:
    drawing = [name for name in schedulers.NAMES if schedulers.draws_noise(schedulers.scheduler(name, 4))]
    assert sorted(drawing) == sorted(DRAWING)


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


@pytest.mark.parametrize("name", ["ddim", "euler", "heun"])
def test_a_start_without_renoising_takes_the_latent_for_x_t(name: str) -> None:
    z, shown = noise(range(3)), []
    scheduler = schedulers.scheduler(name, 75)
    start = from_latent(z, noise(range(3, 6)), scheduler, 5, renoise=False)
    sample(lambda x, t: (shown.append(x), x)[1], start, scheduler)
    torch.testing.assert_close(shown[0].double(), z, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_a_start_is_noised_to_the_level_of_its_first_timestep(name: str) -> None:
    z, n, scheduler = noise(range(3)), noise(range(3, 6)), schedulers.scheduler(name, 75)
    start = from_latent(z, n, scheduler, 5)
    seen = scheduler.scale_model_input(start.x, start.timesteps[0])
    a = ABAR[round(start.timesteps[0])]
    torch.testing.assert_close(seen.double(), a.sqrt() * z + (1 - a).sqrt() * n, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("last_steps", "level"), [(3, 0.16), (5, 0.23), (15, 0.47), (37, 0.83)])
def test_the_noise_level_of_the_published_few_steps(last_steps: int, level: float) -> None:
    """5 of 75 steps are a clean-up. The published levels count steps from 0; ours end at the last, a little higher."""
    scheduler = schedulers.scheduler("ddim", 75)
    start = from_latent(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), scheduler, last_steps)
    assert start.timesteps[0] == round(last_steps * 1000 / 75) - 1
    assert level - 0.01 < float(start.x[0, 0]) < level + 0.04


@pytest.mark.parametrize("name", ["ddim", "heun", "pndm"])
@pytest.mark.parametrize("last_steps", [0, 76, -1])
def test_a_start_beyond_the_schedule_is_refused(name: str, last_steps: int) -> None:
    with pytest.raises(ValueError, match=f"last_steps is {last_steps}, but the schedule has 75 steps"):
        from_latent(noise(range(3)), noise(range(3)), schedulers.scheduler(name, 75), last_steps)


@pytest.mark.parametrize("name", ["dpm++", "euler", "pndm", "unipc", "kdpm2"])
def test_a_used_scheduler_is_refused(name: str) -> None:
    scheduler = schedulers.scheduler(name, 4)
    sample(MIXTURE, from_noise(noise([1]), scheduler), scheduler)
    with pytest.raises(ValueError, match="every batch needs a fresh one"):
        from_noise(noise([1]), scheduler)


def test_abar_is_that_of_the_schedulers() -> None:
    torch.testing.assert_close(
        STABLE_DIFFUSION.abar(), schedulers.scheduler("ddim", 10).alphas_cumprod, atol=2e-7, rtol=1e-4
    )


AVERAGING = ("pndm", "heun", "kdpm2", "kdpm2_a")
PURE = [NoiseSchedule(zero_terminal=True), NoiseSchedule(zero_terminal=True, shift=0.25)]


@pytest.mark.parametrize("zero", PURE, ids=["plain", "shifted"])
@pytest.mark.parametrize("name", [name for name in schedulers.NAMES if name not in AVERAGING])
def test_pure_noise_at_the_end_of_the_schedule_is_a_start_too(name: str, zero: NoiseSchedule) -> None:
    """A v network under zero terminal SNR: weights and places of the modes are found although x_T says nothing."""
    mixture = Mixture(MIXTURE.weights, MEANS, 0.25, zero.abar().double())
    scheduler = schedulers.scheduler(name, 20, zero)
    y = sample(mixture, from_noise(noise(range(1000)), scheduler), scheduler, range(1000))
    near = y[(y - MEANS[0]).norm(dim=1) < 1.5]
    torch.testing.assert_close(near.mean(0).double(), MEANS[0], atol=0.05, rtol=0)
    if name != "lcm":  # it wants a consistency model
        torch.testing.assert_close(mixture.fractions(y).double(), mixture.weights, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_a_bright_and_a_dark_image_differ_only_if_the_last_level_is_pure_noise(name: str) -> None:
    """The best network of 256 pixels that share one brightness, N(0, 1): x_T must not tell it, or it is drawn wrong."""
    spread = []
    for noise_levels in (STABLE_DIFFUSION, PURE[0]):
        abar = noise_levels.abar().double()

        def denoise(x: Tensor, t: int, abar: Tensor = abar) -> Tensor:
            a = abar[t]
            return (a.sqrt() * x.mean(1, keepdim=True) / (a + (1 - a) / 256)).expand_as(x)

        scheduler = schedulers.scheduler(name, 30, noise_levels)
        y = sample(denoise, from_noise(noise(range(400), (256,)), scheduler), scheduler)
        spread.append(float(y.mean(1).std()))
    assert spread[1] == pytest.approx(1.0, abs=0.1)  # the truth
    assert spread[0] < 0.85


@pytest.mark.parametrize("name", schedulers.NAMES)
@pytest.mark.parametrize("zero", PURE, ids=["plain", "shifted"])
def test_every_scheduler_has_the_noise_levels_of_the_network(name: str, zero: NoiseSchedule) -> None:
    levels = zero if name not in AVERAGING else NoiseSchedule(shift=zero.shift)
    built = schedulers.scheduler(name, 10, levels)
    torch.testing.assert_close(built.alphas_cumprod.double(), levels.abar().double(), atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("name", AVERAGING)
def test_a_scheduler_that_cannot_start_from_pure_noise_says_so(name: str) -> None:
    with pytest.raises(
        InputError, match=f"'{re.escape(name)}' cannot start from pure noise, as this model needs; use ddim"
    ):
        schedulers.factory(name, 10, NoiseSchedule(zero_terminal=True))


def test_an_unknown_scheduler_names_the_known_ones_and_an_unfit_one_its_reason() -> None:
    with pytest.raises(InputError, match=r"'eulr' is not known; use one of ddim, ddpm"):
        schedulers.factory("eulr", 10)
    with pytest.raises(InputError, match=r"'dpm_sde' is not usable: .*torchsde"):
        schedulers.factory("dpm_sde", 10)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_that_does_not_fit_is_refused(steps: int) -> None:
    with pytest.raises(InputError, match=f"{steps} sampling steps do not fit a network of 1000"):
        schedulers.factory("ddim", steps)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "heun"])
@pytest.mark.parametrize("when", [0, 2, -1])
def test_a_row_that_overflows_on_the_way_comes_back_as_nan_and_only_that_one(name: str, when: int) -> None:
    scheduler = schedulers.scheduler(name, 5)
    start = from_noise(noise(range(4)), scheduler)
    asked = iter(range(len(start.timesteps)))
    bad = when % len(start.timesteps)

    def forgetful(x: Tensor, t: int) -> Tensor:
        """Overflows once in row 2, as float16 does; the answers after it are finite again."""
        x0 = MIXTURE(x.nan_to_num(0.0, 0.0, 0.0), t)
        if next(asked) == bad:
            x0[2, 0] = torch.inf
        return x0

    y = sample(forgetful, start, scheduler)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3]], draw(MIXTURE, 4, 5, name)[[0, 1, 3]])
