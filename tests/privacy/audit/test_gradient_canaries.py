"""Gradient canaries: orthogonal directions, mechanisms whose epsilon is known, and a training without its noise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medlt.privacy.accounting import spent
from medlt.privacy.audit.canary import CanaryTest, canary_test
from medlt.privacy.audit.fdp import epsilon_of
from medlt.privacy.dpsgd.canaries import Directions, GradientCanaries, Observer, read_scores
from medlt.privacy.dpsgd.randomness import Seeded
from medlt.privacy.dpsgd.training import PrivacySettings, fit_private
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import GradSampleMode, InputError

ROWS, M, DELTA = 24, 400, 1e-5
X = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(1))


def loss(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
    out: Tensor = (network(X[rows]) - X[rows]).square().mean(1)
    return out


def scored(folder: Path, seed: int, *, noise: float, batch: int, steps: int, stop_at: int | None = None) -> np.ndarray:
    """The scores of M canaries of one training of 8,288 weights."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(32, 127), nn.Tanh(), nn.Linear(127, 32))
    private = PrivacySettings(noise_multiplier=noise, epsilon=float("inf"), delta=DELTA, units=ROWS, secure_mode=False,
                              max_grad_norm=0.7, grad_sample_mode=GradSampleMode.HOOKS)  # fmt: skip
    training = Training(steps=steps, batch_size=batch, learning_rate=0.01, warmup_steps=0, checkpoint_every=2)
    given = GradientCanaries.flipped(M, seed)
    fit_private(network, loss, [f"p{i}" for i in range(ROWS)], training=replace(training, stop_at=stop_at),
                private=private, runtime=Runtime("cpu", "fp32", None, seed), folder=folder, key="k", name="probe",
                data="d", canaries=given)  # fmt: skip
    return read_scores(folder, given)


def audited(folder: Path, seed: int, ledger: float, **training: Any) -> CanaryTest:
    included = GradientCanaries.flipped(M, seed).included
    return canary_test(lambda _: scored(folder / str(seed), seed, **training), included, delta=DELTA, ledger=ledger)


def test_directions_are_orthonormal_and_projections_give_back_what_was_added() -> None:
    weights = [torch.zeros(40, 7), torch.zeros(11), torch.zeros(3, 3, 5, 5)]
    directions = Directions.of(GradientCanaries.flipped(50, 0), weights)
    amounts = torch.linspace(-2, 3, 50)
    directions.add(weights, amounts)
    torch.testing.assert_close(directions.project(weights), amounts.double(), rtol=0, atol=1e-5)
    assert float(sum(one.square().sum() for one in weights)) == pytest.approx(float(amounts.square().sum()), rel=1e-5)


def test_scores_are_the_likelihood_ratio_of_a_sampled_gaussian() -> None:
    """Against densities: log of (1 - q) N(0, s^2) + q N(1, s^2) over N(0, s^2), of the projection over the norm."""
    weights = {"w": torch.zeros(60, 50)}
    given = GradientCanaries.flipped(30, 3)
    seen = Observer(given, weights, rate=0.3, noise_multiplier=0.8, max_grad_norm=2.0)
    noised = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    x = seen.directions.project([noised]) * 5 / 2.0
    normal = torch.distributions.Normal
    out, inside = (normal(mean, 0.8).log_prob(x).exp() for mean in (0.0, 1.0))
    torch.testing.assert_close(seen.scores([noised], 5), ((0.7 * out + 0.3 * inside) / out).log())
    assert not Observer(given, weights, 1.0, 0.0, 2.0).scores([noised], 5).isnan().any()


def test_a_step_adds_the_norm_of_each_canary_that_it_samples() -> None:
    total = torch.zeros(80, 80)
    given = GradientCanaries.flipped(200, 0)
    seen = Observer(given, {"w": total}, rate=0.5, noise_multiplier=1.0, max_grad_norm=3.0)
    counts = np.zeros(200)
    for step in range(50):
        total.zero_()
        seen.insert([total], Seeded(0, step))
        there = seen.directions.project([total]).numpy()
        assert np.allclose(there, 3.0 * np.round(there / 3), atol=1e-4)
        counts += np.round(there / 3)
    assert not counts[~given.included].any()
    assert abs(counts[given.included].mean() - 25) < 4 * np.sqrt(12.5 / given.included.sum())


@pytest.mark.parametrize(
    ("noise", "batch", "steps", "least"),
    [(2.0, ROWS, 4, 0.35), (1.2, ROWS // 4, 20, 0.25)],  # mu = sqrt(steps) / noise = 1, and with sampling
)
def test_the_true_epsilon_is_never_exceeded_and_its_share_is_reached(
    tmp_path: Path, noise: float, batch: int, steps: int, least: float
) -> None:
    true = (
        epsilon_of(steps**0.5 / noise, DELTA) if batch == ROWS else spent([(noise, batch / ROWS, steps)], DELTA).epsilon
    )
    results = [audited(tmp_path, seed, true, noise=noise, batch=batch, steps=steps) for seed in range(8)]
    bounds = [one.gaussian or 0.0 for one in results]
    assert max(bounds) <= true
    assert all(one.passed is not False for one in results)
    assert np.median(bounds) >= least * true


def test_a_training_without_its_noise_refutes_the_ledger(tmp_path: Path) -> None:
    result = audited(tmp_path, 0, 3.0, noise=0.0, batch=6, steps=20)
    assert result.passed is False
    assert result.made == M // 2
    assert result.correct >= result.made - 5  # a canary may be in no step


def test_a_stopped_training_continues_with_its_scores(tmp_path: Path) -> None:
    whole = scored(tmp_path / "whole", 1, noise=1.0, batch=6, steps=6)
    part = scored(tmp_path / "parts", 1, noise=1.0, batch=6, steps=6, stop_at=3)
    assert not np.allclose(part, whole)
    np.testing.assert_allclose(scored(tmp_path / "parts", 1, noise=1.0, batch=6, steps=6), whole, rtol=1e-6)
    with pytest.raises(InputError, match="with these canaries"):
        read_scores(tmp_path / "parts", GradientCanaries.flipped(M, 2))


def test_too_few_weights_or_canaries() -> None:
    with pytest.raises(InputError, match="a tenth"):
        Directions.of(GradientCanaries.flipped(50, 0), [torch.zeros(499)])
    with pytest.raises(InputError, match="0 gradient canaries"):
        GradientCanaries.flipped(0, 0)
    with pytest.raises(InputError, match="infinite"):
        Observer(GradientCanaries.flipped(5, 0), {"w": torch.zeros(99)}, 1.0, 0.0, float("inf"))
