"""Tests of the moving average against its closed form and diffusers' EMAModel."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from medlt.rng import noise_like
from medlt.training.averaging import Moving, averaged_model


def moves(count: int) -> list[Tensor]:
    return list(noise_like(range(count), (4,)).double().float())


def averages(decay: float, warmup: bool, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weight after each of `count` updates, and its moving average at that time."""
    network = nn.Linear(4, 1, bias=False)
    moving = Moving(network, list(network.parameters()))
    average: Any = averaged_model(moving, decay, warmup)
    averaged = []
    for value in moves(count):
        with torch.no_grad():
            network.weight.copy_(value[None])
        average.update_parameters(moving)
        averaged.append(average.module.tensors()[0].detach().clone()[0])
    return moves(count), averaged


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95])
def test_the_warmup_equals_diffusers(decay: float) -> None:
    weights, averaged = averages(decay, True, 30)
    weight = nn.Parameter(torch.zeros(4))
    theirs = EMAModel([weight], decay=decay)
    for value, ours in zip(weights, averaged, strict=True):
        with torch.no_grad():
            weight.copy_(value)
        theirs.step([weight])
        torch.testing.assert_close(ours, theirs.shadow_params[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.5, False), (0.9, True)])
def test_the_average_equals_the_weighted_mean_of_its_definition(decay: float, warmup: bool) -> None:
    """After n updates: the sum over k of (1 - d_k) d_{k+1} ... d_n w_k, d_0 = 0, d_k = min(d, (1 + k) / (10 + k))."""
    weights, averaged = averages(decay, warmup, 20)
    d = [0.0, *(min(decay, (1 + k) / (10 + k)) if warmup else decay for k in range(1, 20))]
    for n in (0, 1, 7, 19):
        share = [(1 - d[k]) * float(torch.tensor(d[k + 1 : n + 1], dtype=torch.float64).prod()) for k in range(n + 1)]
        assert sum(share) == pytest.approx(1.0)
        wanted = sum(s * w.double() for s, w in zip(share, weights, strict=False))
        torch.testing.assert_close(averaged[n].double(), wanted, atol=1e-6, rtol=1e-5)


def test_buffers_follow_and_counts_are_copied() -> None:
    norm = nn.BatchNorm1d(2)
    moving = Moving(norm, list(norm.parameters()))
    average: Any = averaged_model(moving, 0.5, False)
    for step in range(3):
        norm.running_mean.fill_(float(step))  # type: ignore[union-attr]
        norm.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        average.update_parameters(moving)
    named = dict(zip((name for name, _ in [*norm.named_parameters(), *norm.named_buffers()]),
                     average.module.tensors(), strict=True))  # fmt: skip
    assert named["running_mean"].tolist() == [1.25, 1.25]  # 0, then 0.5, then 1.25
    assert int(named["num_batches_tracked"]) == 2


def test_the_warm_up_is_the_power_function_average_of_edm2() -> None:
    """Until the decay is reached, weight n of N has the share (n / N)^8: EDM2, eq. 123, relative deviation 0.09."""
    count = 400
    decays = [(1 + n) / (10 + n) for n in range(count)]
    shares = np.array([(1 - decays[n]) * np.prod(decays[n + 1 :]) for n in range(count)])
    power = (np.arange(count) + 5.0) ** 8
    assert np.abs(shares / shares.sum() - power / power.sum()).max() < 2e-4
    at = (np.arange(count) + 1) / count
    mean = (shares * at).sum() / shares.sum()
    deviation = np.sqrt((shares * (at - mean) ** 2).sum() / shares.sum())
    assert deviation == pytest.approx(9**0.5 / 10 / 11**0.5, abs=0.003)
