"""A row's bytes are its own: neighbours, position, batch and number of threads do not reach it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from medlt.diffusion import schedulers
from medlt.diffusion.batching import fixed_batches, lanes, position_free
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.sampler import from_noise, sample
from medlt.rng import noise_like
from medlt.testing import tiny_autoencoder_kl, tiny_autoencoder_tiny


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sampler() -> Callable[[Tensor, Tensor], Tensor]:
    """A whole guided sampling run through a real UNet with attention, as the fusion method does it."""
    torch.manual_seed(0)
    net = LabelUNet(4, 3, width=16).eval().requires_grad_(False)
    torch.nn.init.normal_(net.unet.conv_out.weight)

    def run(noise: Tensor, labels: Tensor) -> Tensor:
        scheduler = schedulers.scheduler("ddim", 2)
        backbone = net.backbone()
        guided = backbone.guided(backbone.condition(labels), 3.5)
        return sample(guided, from_noise(noise, scheduler), scheduler)

    return run


def decoder(network: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def run(z: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            image: Tensor = network.decode(z).sample  # type: ignore[operator]
            return image

    return run


FUNCTIONS = [
    pytest.param(sampler, id="sampling"),
    pytest.param(lambda: decoder(tiny_autoencoder_kl()), id="kl"),
    pytest.param(lambda: decoder(tiny_autoencoder_tiny()), id="tiny"),
]


def rows(n: int) -> tuple[Tensor, Tensor]:
    return noise_like(range(n), (4, 8, 8)), noise_like(range(50, 50 + n), (3,))


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("make", FUNCTIONS)
def test_bytes_do_not_depend_on_the_batch_or_on_threads(make: Callable[[], Callable[..., Tensor]]) -> None:
    fn = fixed_batches(make(), 4)
    z, labels = rows(7)
    torch.set_num_threads(1)
    whole = fn(z, labels)
    torch.set_num_threads(2)
    order = torch.tensor([6, 2, 5, 0, 3])
    assert torch.equal(fn(z[order], labels[order]), whole[order])
    assert torch.equal(fn(z[5:6], labels[5:6]), whole[5:6])
    assert torch.equal(fixed_batches(make(), 4, at_once=2)(z, labels), whole)


@pytest.mark.parametrize("make", FUNCTIONS)
def test_real_networks_are_position_free_on_one_thread(make: Callable[[], Callable[..., Tensor]]) -> None:
    assert position_free(make(), *rows(4))


def test_position_free_finds_a_function_that_looks_at_its_neighbours() -> None:
    assert not position_free(lambda x: x - x.mean(0), torch.arange(4.0)[:, None])
    assert not position_free(lambda x: x + torch.arange(len(x))[:, None], torch.ones(4, 1))
    assert position_free(lambda x: x * 2, torch.arange(4.0)[:, None])


def test_every_call_has_the_fixed_shape_and_padding_is_cut() -> None:
    shapes: list[int] = []

    def fn(x: Tensor) -> Tensor:
        shapes.append(len(x))
        return x + 1

    for n in (1, 3, 4, 9):
        assert torch.equal(fixed_batches(fn, 4)(torch.arange(n)), torch.arange(n) + 1)
    assert set(shapes) == {4}


@pytest.mark.usefixtures("restore_threads")
def test_lanes_run_on_one_thread_and_leave_torch_as_it_was() -> None:
    torch.set_num_threads(3)
    with lanes(2) as pool:
        assert {pool.submit(torch.get_num_threads).result() for _ in range(4)} == {1}
    assert torch.get_num_threads() == 3


def test_an_error_in_a_lane_reaches_the_caller() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no such latent")

    with pytest.raises(RuntimeError, match="no such latent"):
        fixed_batches(fail, 2)(torch.zeros(3))
