"""Guidance through a decoder: one step by hand where everything is linear, neutral elements, a mixture, real codecs."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.decoded_signal import average_shifts, decoded_signal, displace_estimate
from medlt.diffusion.displacement import Displacement, expected_norm, unit
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.testing import Mixture, constant_denoiser, constant_signal, tiny_autoencoder_kl, tiny_autoencoder_tiny

ABAR = STABLE_DIFFUSION.abar().double()
MAKERS = pytest.mark.parametrize("make", [tiny_autoencoder_kl, tiny_autoencoder_tiny], ids=["kl", "tiny"])


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moves(length: float, timesteps: range | tuple[int, ...] = range(1000)) -> Displacement:
    """Moves of one length at these timesteps."""
    return Displacement(dict.fromkeys(timesteps, length), ABAR)


def norm(z: Tensor, t: int) -> Tensor:
    """The expected norm of finished latents, to broadcast over z [B,D]."""
    return expected_norm(z, float(ABAR[t]))[:, None]


def level(images: Tensor, t: int) -> Tensor:
    return images.flatten(1).mean(1)


def test_one_step_by_hand_with_a_linear_decoder_and_a_linear_logit() -> None:
    """f = v . (A z + b): the gradient is A^T v at every z, so the step is d n A^T v / ||A^T v||."""
    A, b, v, z = draws(12, 6, seed=1), draws(12, seed=2), draws(12, seed=3), draws(4, 6, seed=4)
    signal = decoded_signal(lambda x: x @ A.T + b, lambda image, t: image @ v)
    guided = displace_estimate(signal, moves(0.03, (500,)))(constant_denoiser(z))
    way = A.T @ v / (A.T @ v).norm()
    torch.testing.assert_close(guided(draws(4, 6), 500), z + 0.03 * norm(z, 500) * way)
    assert torch.equal(guided(z, 499), z)


def test_through_the_network_it_is_the_gradient_at_the_noisy_latent() -> None:
    """x0 = M x_t: the gradient in x_t is M^T A^T v; the estimate moves by the same share of its norm."""
    A, M, v, x = draws(12, 6, seed=1), draws(6, 6, seed=5), draws(12, seed=3), draws(4, 6, seed=4)
    signal = decoded_signal(lambda z: z @ A.T, lambda image, t: image @ v)
    found = displace_estimate(signal, moves(0.05), network=True)(lambda x, t: x @ M.T)(x, 9)
    z, way = x @ M.T, M.T @ A.T @ v
    torch.testing.assert_close(found, z + 0.05 * norm(z, 9) * way / way.norm())


@given(st.integers(1, 5), st.floats(1e-12, 1e12), st.integers(0, 99))
@settings(max_examples=40)
def test_a_direction_has_length_one_whatever_the_gradients_scale(rows: int, scale: float, seed: int) -> None:
    g = draws(rows, 2, 3, 3, seed=seed)
    step = unit(g * scale)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.ones(rows))
    torch.testing.assert_close(step, unit(g), rtol=1e-4, atol=1e-5)


def test_a_gradient_of_zero_or_of_no_number_moves_nothing() -> None:
    g = draws(3, 4)
    g[0], g[1, 2] = 0, torch.nan
    step = unit(g)
    assert torch.equal(step[:2], torch.zeros(2, 4))
    assert step[2].norm() > 0
    z = draws(3, 4, seed=1)
    assert torch.equal(displace_estimate(constant_signal(2.0), moves(0.5))(constant_denoiser(z))(z, 5), z)


def test_length_zero_is_the_bare_denoiser() -> None:
    bare, x = (lambda x, t: x.sin()), draws(2, 4)
    assert torch.equal(displace_estimate(lambda z, t: z.sum(1), moves(0.0))(bare)(x, 3), bare(x, 3))


def test_guidance_moves_a_mixture_towards_the_signal_monotonically() -> None:
    """The signal is high at the mode of 2 %: its share grows with the weight; weight 0 samples the mixture."""
    means = torch.tensor([[3.0, 0.0], [-3.0, 0.0]]).double()
    mixture = Mixture(torch.tensor([0.98, 0.02]).double(), means, 0.5, ABAR)
    signal = decoded_signal(lambda z: z.tanh(), lambda image, t: -image[:, 0])
    shares, levels = [], []
    for weight in (0.0, 0.2, 0.4):
        made = scheduler("ddim", 20)
        noise = torch.stack([draws(2, seed=s) for s in range(1500)]).double()
        found = sample(
            displace_estimate(signal, moves(weight, range(333, 1000)))(mixture), from_noise(noise, made), made
        )
        shares.append(float(mixture.fractions(found)[1]))
        levels.append(float(signal(found, 0).mean()))
    assert shares[0] == pytest.approx(0.02, abs=0.01)
    assert shares[0] < shares[1] < shares[2]
    assert levels[0] < levels[1] < levels[2]


def test_shifts_are_each_rows_own_whole_pixels_and_the_border_is_repeated() -> None:
    images, seen_images = draws(3, 1, 64, 64), []

    def look(moved: Tensor, t: int) -> Tensor:
        seen_images.append(moved)
        return level(moved, t)

    mean = average_shifts(look, [5, 6, 7], 8)(images, 40)
    torch.testing.assert_close(mean, torch.stack([level(moved, 40) for moved in seen_images]).mean(0))
    moves = set()
    for moved in seen_images:
        at = [
            [
                (y, x)
                for y in range(-2, 3)
                for x in range(-2, 3)
                if torch.equal(moved[i, 0, 4:-4, 4:-4], images[i, 0, 4 + y : 60 + y, 4 + x : 60 + x])
            ]
            for i in range(3)
        ]
        assert all(len(one) == 1 for one in at)
        moves |= {(i, one[0]) for i, one in enumerate(at)}
    assert len({move for _, move in moves}) > 6
    alone = average_shifts(level, [6], 8)(images[1:2], 40)
    torch.testing.assert_close(alone[0], mean[1])
    assert average_shifts(level, [6], 8)(images[1:2], 41) != alone
    flat = torch.full((1, 1, 64, 64), 0.7)
    torch.testing.assert_close(average_shifts(level, [1], 4)(flat, 3), torch.tensor([0.7]))
    assert average_shifts(level, [1], 0) is level


@MAKERS
def test_a_codecs_picture_is_its_decoding_and_checkpointing_changes_no_number(make: Callable[..., object]) -> None:
    codec, z = AutoencoderCodec(make(), "cpu"), draws(2, 4, 8, 8).requires_grad_()  # type: ignore[arg-type]
    torch.testing.assert_close(codec.picture(z.detach()), codec.decode(z.detach()))
    slopes = [
        torch.autograd.grad(codec.picture(z, checkpointed).square().sum(), z)[0] for checkpointed in (False, True)
    ]
    assert slopes[0].abs().sum() > 0
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-4 * float(slopes[0].abs().max()))
    assert all(not weight.requires_grad for weight in codec.network.parameters())


@MAKERS
def test_the_gradient_through_a_codec_is_the_slope(make: Callable[..., object]) -> None:
    network = make()
    codec = AutoencoderCodec(network, "cpu", dtype=torch.float64)  # type: ignore[arg-type]
    z, way = draws(1, 4, 8, 8).requires_grad_(), draws(1, 4, 8, 8, seed=1)
    (g,) = torch.autograd.grad(codec.picture(z).double().square().mean(), z)
    up, down = (codec.picture((z + h * way).detach()).double().square().mean() for h in (1e-3, -1e-3))
    assert (g * way).sum().item() == pytest.approx((up - down).item() / 2e-3, rel=0.02)


@MAKERS
def test_a_row_keeps_its_bytes_in_any_company_and_lane(make: Callable[..., object]) -> None:
    codec = AutoencoderCodec(make(), "cpu")  # type: ignore[arg-type]
    z = draws(9, 4, 8, 8)
    for checkpointed in (False, True):

        @torch.no_grad()
        def moved(rows: Tensor, checkpointed: bool = checkpointed) -> Tensor:
            signal = decoded_signal(lambda z: codec.picture(z, checkpointed), level)
            return displace_estimate(signal, moves(0.1))(constant_denoiser(rows))(rows, 5)

        together = fixed_batches(moved, at_once=2)(z)
        assert not torch.equal(together, z)
        for i in (0, 3, 8):
            assert torch.equal(fixed_batches(moved)(z[i : i + 1])[0], together[i])


@MAKERS
@pytest.mark.parametrize(("rows", "most"), [(1, 0.7), (4, 0.01)])
def test_checkpointing_keeps_less(make: Callable[..., object], rows: int, most: float) -> None:
    """Bytes that autograd holds between the passes, the weights left out."""
    codec, z = AutoencoderCodec(make(), "cpu"), draws(rows, 4, 32, 32).requires_grad_()  # type: ignore[arg-type]
    weights = {weight.untyped_storage().data_ptr() for weight in codec.network.parameters()}
    kept = []
    for checkpointed in (False, True):
        held: dict[int, int] = {}

        def keep(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            if (at := tensor.untyped_storage().data_ptr()) not in weights:
                held[at] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            image = codec.picture(z, checkpointed)
        kept.append(sum(held.values()))
        assert image.requires_grad
    assert kept[1] < most * kept[0]
