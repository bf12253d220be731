"""The public twins say the truth they claim to."""

import pytest
import torch

from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.testing import Discs, Mixture, always, constant_denoiser, constant_signal
from medlt.types import InputError


@pytest.mark.parametrize("t", [10, 300, 700, 999])
def test_the_mixture_denoiser_is_the_posterior_mean(t: int) -> None:
    """Against numerical integration of x0 p(x0) p(x_t | x0) in one dimension."""
    weights, means, std, a = (
        torch.tensor([0.7, 0.3]).double(),
        torch.tensor([-1.0, 2.0]).double(),
        0.4,
        STABLE_DIFFUSION.abar().double(),
    )
    mixture = Mixture(weights, means[:, None], std, a)
    x_t = torch.linspace(-2, 2, 5).double()
    x0 = torch.linspace(-6, 7, 200_001).double()
    prior = (weights * torch.exp(-((x0[:, None] - means) ** 2) / (2 * std**2))).sum(1)
    joint = prior * torch.exp(-((x_t[:, None] - a[t].sqrt() * x0) ** 2) / (2 * (1 - a[t])))
    expected = (joint * x0).sum(1) / joint.sum(1)
    torch.testing.assert_close(mixture(x_t[:, None], t)[:, 0], expected, atol=1e-6, rtol=1e-5)


def test_fractions_count_the_nearest_mean() -> None:
    mixture = Mixture(torch.ones(3) / 3, torch.tensor([[0.0], [1.0], [5.0]]), 0.1, STABLE_DIFFUSION.abar())
    assert mixture.fractions(torch.tensor([[0.1], [0.9], [0.8], [1.4]])).tolist() == [0.25, 0.75, 0.0]


def test_discs_are_a_data_set_of_distinct_repeatable_images() -> None:
    discs = Discs(5, 16, seed=3)
    images = [item["image"] for item in discs]  # type: ignore[attr-defined]
    assert len(images) == len(discs) == len(discs.uids) == 5
    assert all(torch.equal(image, Discs(5, 16, seed=3)[i]["image"]) for i, image in enumerate(images))
    assert all(image.shape == (1, 16, 16) and 0 <= image.min() < image.max() <= 1 for image in images)
    assert len({image.sum().item() for image in images}) == 5


def test_constants_are_constant() -> None:
    x0 = torch.rand(2, 1, 4, 4)
    assert constant_denoiser(x0)(torch.zeros(2, 1, 4, 4), 5) is x0
    x = x0.clone().requires_grad_()
    said = constant_signal(2.5)(x, 0)
    assert said.tolist() == [2.5, 2.5]
    assert torch.autograd.grad(said.sum(), x)[0].abs().sum() == 0


def test_a_check_that_always_says_the_same() -> None:
    from types import SimpleNamespace

    found = always("judge", False)(SimpleNamespace(rows=SimpleNamespace(index=["a", "b"])))
    assert [(f.uid, f.passed, f.check) for f in found] == [("a", False, "judge"), ("b", False, "judge")]


def test_the_identity_codec_names_a_size_it_cannot_take() -> None:
    from medlt.testing import IdentityCodec

    with pytest.raises(InputError, match="multiple of 2"):
        IdentityCodec(factor=2).moments(torch.zeros(1, 1, 3, 4))
