"""The same few images, the same steps: trained plainly they are given away, trained privately they are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelUNet
from medlt.privacy.accounting import Planned, calibrate, spent
from medlt.privacy.audit.canary import Canaries, CanaryTest, canaries, canary_test
from medlt.privacy.audit.membership import calibrated, loss_scores, membership
from medlt.privacy.dpsgd.training import PrivacySettings, fit_private
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import GradSampleMode

STEPS, EPSILON, DELTA = 250, 2.0, 1e-4  # 60 right guesses of 60 would show 2.9


def privately(latents: Tensor, folder: Path) -> tuple[Backbone, float]:
    """A LabelUNet trained on these latents with DP-SGD at EPSILON, one patient each, and what it spent."""
    torch.manual_seed(0)
    backbone = LabelUNet(channels=1, findings=1, width=16, levels=2, prediction="sample").backbone()
    abar, null = backbone.noise.abar(), backbone.condition.null

    def loss(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        x0 = latents[torch.from_numpy(rows)]
        t = torch.randint(0, 1000, (len(rows),), generator=draw)
        a = abar[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * torch.randn(x0.shape, generator=draw)
        out: Tensor = network(x_t, t, null.expand(len(rows), -1))
        return (out - x0).square().flatten(1).mean(1)

    rate = 16 / len(latents)
    noise = calibrate([Planned(rate, STEPS)], EPSILON, DELTA)
    private = PrivacySettings(
        noise_multiplier=noise,
        epsilon=EPSILON,
        delta=DELTA,
        units=len(latents),
        noise_multiplicity=1,
        secure_mode=False,
        grad_sample_mode=GradSampleMode.HOOKS,
    )
    training = Training(steps=STEPS, batch_size=16, learning_rate=3e-3, checkpoint_every=STEPS, warmup_steps=0)
    units = [f"p{i}" for i in range(len(latents))]
    done = fit_private(backbone.network, loss, units, training=training, private=private, folder=folder, key="tiny",
               name="denoiser", data="random signs", runtime=Runtime("cpu", "fp32", None, 0))  # fmt: skip
    backbone.network.eval().requires_grad_(False)
    return backbone, spent([(done.noise_multiplier, done.sample_rate, done.steps)], DELTA).epsilon


def scored(backbone: Backbone, given: Canaries) -> np.ndarray:
    return calibrated(loss_scores(backbone, given.latents, seed=0))


@pytest.mark.slow
def test_plain_training_gives_canaries_away_and_private_training_keeps_its_ledger(
    plainly: Callable[[Tensor, int], Backbone], tmp_path: Path
) -> None:
    given = canaries(120, (1, 8, 8), 1)  # 50 on either side are the fewest that silence says something of
    inside = torch.from_numpy(np.flatnonzero(given.included))
    names = [f"p{i}" for i in range(120)]

    plain = scored(plainly(given.latents[inside], 4 * STEPS), given)
    caught = membership(plain, given.included, names, seed=0)
    assert caught.passed is False
    assert caught.auc.value > 0.8, caught.sentence
    refuted: CanaryTest = canary_test(lambda _: plain, given.included, delta=DELTA, ledger=0.5)
    assert refuted.passed is False

    backbone, epsilon = privately(given.latents[inside], tmp_path)
    assert epsilon <= EPSILON
    private = scored(backbone, given)
    hidden = membership(private, given.included, names, seed=0)
    assert hidden.auc.value < caught.auc.value
    assert hidden.passed is True
    assert canary_test(lambda _: private, given.included, delta=DELTA, ledger=epsilon).passed is True
