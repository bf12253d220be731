"""Noise schedules in closed form: pure noise at the end, the shift by resolution, and the preconditioning of EDM."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from medlt.diffusion.noise import NoiseSchedule, betas_of, resolution_shift, x0_of
from medlt.types import InputError

PLAIN, ZERO = NoiseSchedule(), NoiseSchedule(zero_terminal=True)


def log_snr(noise: NoiseSchedule) -> torch.Tensor:
    a = noise.abar().double()
    return (a / (1 - a)).log()


@pytest.mark.parametrize("shift", [1.0, 0.25, 3.0])
def test_the_last_level_is_pure_noise_and_the_first_one_stays(shift: float) -> None:
    a = NoiseSchedule(zero_terminal=True, shift=shift).abar()
    assert float(a[-1]) == 0.0
    assert bool((a[1:] < a[:-1]).all())
    first = PLAIN.abar()[0].double()
    assert float(a[0]) == pytest.approx(float(first / (first + (1 - first) * shift**2)), rel=1e-6)


def test_the_rescaling_is_that_of_diffusers() -> None:
    betas = rescale_zero_terminal_snr(torch.tensor(betas_of(PLAIN.abar().double()), dtype=torch.float64))
    torch.testing.assert_close((1 - betas).cumprod(0), ZERO.abar().double(), atol=1e-6, rtol=1e-5)


@given(st.floats(0.2, 5))
def test_a_shift_moves_the_log_snr_of_every_level_alike(shift: float) -> None:
    moved = log_snr(NoiseSchedule(shift=shift)) - log_snr(PLAIN)
    torch.testing.assert_close(moved, torch.full_like(moved, -2 * math.log(shift)), atol=4e-3, rtol=0)


@pytest.mark.parametrize(("side", "moved"), [(16, 2 * math.log(4)), (64, 0.0), (128, -2 * math.log(2))])
def test_a_smaller_latent_has_as_much_signal_after_averaging(side: int, moved: float) -> None:
    """simple diffusion: 2 log(reference / side), so that the mean over a share of the image is as noisy."""
    shift = resolution_shift(side)
    assert float((log_snr(NoiseSchedule(shift=shift)) - log_snr(PLAIN))[500]) == pytest.approx(moved, abs=1e-3)
    a = [NoiseSchedule(shift=resolution_shift(one)).abar()[500].double() for one in (side, 64)]
    of_a_sixteenth = [one / ((1 - one) / (size / 4) ** 2) for one, size in zip(a, (side, 64), strict=True)]
    assert float(of_a_sixteenth[0]) == pytest.approx(float(of_a_sixteenth[1]), rel=1e-4)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_shift_is_that_of_rectified_flow_too(t: float) -> None:
    """SD3, eq. 23: noise share t of (1 - t) x0 + t n goes to shift t / (1 + (shift - 1) t)."""
    shift = resolution_shift(16)
    moved = shift * t / (1 + (shift - 1) * t)
    assert ((1 - moved) / moved) ** 2 == pytest.approx(((1 - t) / t) ** 2 / shift**2)


@pytest.mark.parametrize("noise", [PLAIN, ZERO, NoiseSchedule(shift=0.25), NoiseSchedule(zero_terminal=True, shift=2)])
def test_diffusers_gets_the_same_levels(noise: NoiseSchedule) -> None:
    theirs = DDIMScheduler(**noise.options()).alphas_cumprod
    torch.testing.assert_close(theirs, noise.abar(), atol=1e-6, rtol=1e-3)
    assert (float(theirs[-1]) == 0.0) == noise.zero_terminal


@given(st.floats(1e-4, 1 - 1e-4), st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3))
def test_v_prediction_is_the_preconditioning_of_edm_for_data_of_unit_spread(
    a: float, x0: float, n: float, out: float
) -> None:
    """EDM, table 1: D = c_skip y + c_out F(c_in y) of y = x0 + sigma n, with sigma_data 1. Then F is -v."""
    sigma = math.sqrt((1 - a) / a)
    y = x0 + sigma * n
    c_skip, c_out, c_in = 1 / (sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1), 1 / math.sqrt(sigma**2 + 1)
    x_t = math.sqrt(a) * x0 + math.sqrt(1 - a) * n
    assert c_in * y == pytest.approx(x_t, abs=1e-9)
    given_v, given_x, level = torch.tensor([out, x_t, a], dtype=torch.float64)
    ours = x0_of(given_v, given_x, level, "v_prediction")
    assert float(ours) == pytest.approx(c_skip * y - c_out * out, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_that_is_no_shift_is_refused(shift: float) -> None:
    with pytest.raises(InputError, match="shift is"):
        NoiseSchedule(shift=shift)
