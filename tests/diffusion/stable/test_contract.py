"""Stable Diffusion is a Backbone like the other families: see tests/diffusion/test_families.py."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.rng import noise_like

NAN = float("nan")
LABELS = torch.tensor([[1.0, 0.0], [0.0, NAN], [NAN, NAN]])
ABOUT = [{"view": "PA"}, {}, {"sex": "F"}]


def backbone(folder: Path, text: Literal["frozen", "trained"] = "frozen") -> Backbone:
    return load_stable_diffusion(folder).backbone(Prompts(("Cardiomegaly", "Hernia")), text)


@torch.no_grad()
def test_a_row_is_its_own_and_guidance_combines_two_forwards(checkpoint: Path) -> None:
    told = backbone(checkpoint)
    x_t, condition = noise_like(range(3), (4, 8, 8)), told.condition(LABELS, ABOUT)
    together = told.denoiser(condition)(x_t, 500)
    alone = [told.denoiser(condition[i : i + 1])(x_t[i : i + 1], 500) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-3)
    null = told.denoiser()(x_t, 500)
    torch.testing.assert_close(
        told.guided(condition, 3.0)(x_t, 500), null + 3 * (together - null), atol=1e-3, rtol=1e-3
    )
    assert torch.equal(told.guided(condition, 1)(x_t, 500), together)
    assert (null - together).flatten(1).abs().amax(1).min() > 1e-4
    assert torch.cdist(together.flatten(1), together.flatten(1)).add(torch.eye(3)).min() > 1e-4


@torch.no_grad()
def test_a_trained_text_encoder_starts_as_the_frozen_one(checkpoint: Path) -> None:
    frozen, trained = backbone(checkpoint), backbone(checkpoint, "trained")
    x_t, t = noise_like(range(3), (4, 8, 8)), torch.tensor([1, 500, 999])
    torch.testing.assert_close(
        trained.network(x_t, t, trained.condition(LABELS, ABOUT)),
        frozen.network(x_t, t, frozen.condition(LABELS, ABOUT)),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip
    torch.testing.assert_close(trained.denoiser()(x_t, 500), frozen.denoiser()(x_t, 500), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("text", ["frozen", "trained"])
def test_every_weight_learns(sd15: Path, text: Literal["frozen", "trained"]) -> None:
    told = backbone(sd15, text)
    network = told.network.train().requires_grad_(True)
    x_t, t = noise_like(range(3), (4, 16, 16)), torch.tensor([1, 500, 999])
    network(x_t, t, told.condition(LABELS, ABOUT)).pow(2).sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()] == []
