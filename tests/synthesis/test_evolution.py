"""Private Evolution without a run: how winners are drawn and varied, and where generations go under exact denoising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.sampler import last_steps
from medlt.diffusion.schedulers import factory
from medlt.privacy import votes
from medlt.rng import noise_like, seed_of
from medlt.synthesis.evolution import PrivateEvolution
from medlt.synthesis.from_noise import FromNoise
from medlt.testing import Mixture, label_backbone
from medlt.types import InputError

ABAR = STABLE_DIFFUSION.abar()
Methods = dict[str, Callable[..., Any]]


def flat(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """The estimate that every image is as likely as any other: the noise stays where it is."""
    return x / ABAR[t][:, None, None, None].sqrt()


def test_winners_are_drawn_in_proportion_to_their_votes(methods: Methods) -> None:
    method = methods["evolution"]()
    rows = method.plan({"Hernia": 1000}, 3)
    drawn = np.bincount(rows["winner"], minlength=3) / len(rows)
    assert drawn[2] == 0  # no vote, no draw
    assert abs(drawn[0] - 0.75) < 5 * np.sqrt(0.75 * 0.25 / len(rows))


@pytest.mark.parametrize("space", ["standardised", "codec"])
@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_under_a_flat_prior_an_image_is_its_winner_and_the_noise_of_the_strength(
    methods: Methods, space: str, strength: float
) -> None:
    """x0 = x_t / sqrt(abar) leaves no noise to remove, so DDIM stays at z + sqrt(1/abar - 1) eps of its first step."""
    backbone = label_backbone(flat, 5, space=space)
    method: PrivateEvolution = methods["evolution"](
        backbone=backbone, scheduler=factory("ddim", 20), guidance_scale=1.0, strength=strength
    )
    rows = method.plan({"Hernia": 3, "Pleural Other": 2}, 3)
    first = method.scheduler().timesteps[-last_steps(strength, 20)]
    noise = noise_like([seed_of("noise", int(seed)) for seed in rows["seed"]], (2, 8, 8))
    chosen = rows[["finding", "winner"]].itertuples(index=False, name=None)
    winners = torch.stack([method.population[name][number] for name, number in chosen])
    expected = winners + (1 / ABAR[int(first)] - 1).sqrt() * noise
    assert torch.allclose(method.sampled(rows), expected, rtol=1e-4, atol=1e-4)


def test_what_is_decoded_are_the_latents_that_are_sampled(methods: Methods) -> None:
    method = methods["evolution"]()
    rows = method.plan({"Hernia": 4}, 3)
    images = torch.cat([batch.images for batch in method.run(rows)])
    assert torch.allclose(method.decoded(method.sampled(rows)), images, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_strength_out_of_range_is_refused(methods: Methods, strength: float) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        methods["evolution"](strength=strength)


def test_generations_move_to_the_patients_under_the_exact_denoiser_of_two_modes(methods: Methods) -> None:
    """One image of five is in the patients' mode before the first vote; after three, all are, and nearer to them."""
    means = torch.stack([torch.full((128,), -1.0), torch.full((128,), 1.0)])
    exact = Mixture(torch.tensor([0.8, 0.2]), means, 0.3, ABAR)

    def answer(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return exact(x.flatten(1), int(t[0])).reshape(x.shape)

    shared: dict[str, Any] = {
        "backbone": label_backbone(answer, 5, space="codec"), "guidance_scale": 1.0, "num_candidates": 1,
        "scheduler": factory("ddim", 20),
    }  # fmt: skip
    patients = 1 + 0.3 * torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    method: FromNoise | PrivateEvolution = methods["noise"](**shared)
    real = votes.thumbnails(method.decoded(patients), 8).numpy()
    share, distance = [], []
    for generation, strength in enumerate((0.6, 0.4, 0.2, 0.2)):
        z = method.sampled(method.plan({"Hernia": 40}, generation))
        share.append(float((z.mean((1, 2, 3)) > 0).float().mean()))
        distance.append(torch.cdist(patients.flatten(1), z.flatten(1)).min(1).values.mean().item())
        near = votes.nearest(real, votes.thumbnails(method.decoded(z), 8).numpy()[None])
        counted = votes.count_votes(near, np.ones((40, 1), bool), [str(i) for i in range(40)], 40)
        shares = votes.shares(torch.from_numpy(counted), 0.0)
        method = methods["evolution"](
            population={"Hernia": z}, shares={"Hernia": shares[0]}, strength=strength, **shared
        )
    assert 0.05 < share[0] < 0.4
    assert share[-1] == 1.0
    assert distance[-1] < distance[0]
