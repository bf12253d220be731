"""Bounds of epsilon from canaries in the gradients of private trainings, as a share of what the accountant charges.

    python benchmarks/gradient_canaries.py [--seeds 3] [--steps 100]

A small UNet (width 32, latents of 8 x 8) learns random latents of 200 patients, 10 a step, with the noise that the
budget needs. The last rows are trainings whose noise is weaker than the ledger says.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import row_loss, table

from medlt.diffusion.labels import LabelUNet
from medlt.privacy.accounting import Planned, calibrate
from medlt.privacy.audit.canary import CanaryTest, canary_test
from medlt.privacy.dpsgd.canaries import GradientCanaries, read_scores
from medlt.privacy.dpsgd.training import PrivacySettings, fit_private
from medlt.recipes._audit import GUESSED
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import GradSampleMode

PATIENTS, BATCH, DELTA, CANARIES = 200, 10, 1e-5, 7000


def audited(epsilon: float, weaker: float, steps: int, seed: int) -> CanaryTest:
    """The test of one training that is calibrated for epsilon, with its noise divided by `weaker`."""
    torch.manual_seed(seed)
    latents, backbone = torch.randn(PATIENTS, 4, 8, 8), LabelUNet(channels=4, findings=1, width=32, levels=2).backbone()
    loss = row_loss(backbone, latents)
    noise = calibrate([Planned(BATCH / PATIENTS, steps)], epsilon, DELTA) / weaker
    private = PrivacySettings(noise_multiplier=noise, epsilon=float("inf"), delta=DELTA, units=PATIENTS,
                              secure_mode=False, grad_sample_mode=GradSampleMode.BOOKKEEPING)  # fmt: skip
    training = Training(steps=steps, batch_size=BATCH, learning_rate=1e-3, warmup_steps=0, checkpoint_every=steps)
    given = GradientCanaries.flipped(CANARIES, seed)

    def train(included: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            fit_private(backbone.network, loss, [f"p{i}" for i in range(PATIENTS)], training=training, private=private,
                        runtime=Runtime("cpu", "fp32", None, seed), folder=Path(folder), key="k", name="probe",
                        data="d", canaries=given)  # fmt: skip
            return read_scores(Path(folder), given)

    return canary_test(train, given.included, delta=DELTA, share=GUESSED, ledger=epsilon)


def main() -> None:
    """Write the table."""
    read = argparse.ArgumentParser()
    read.add_argument("--seeds", type=int, default=3)
    read.add_argument("--steps", type=int, default=100)
    args = read.parse_args()
    lines = ["| ledger | noise over the ledger's | correct guesses | epsilon at least | if Gaussian | passed |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for epsilon, weaker in ((1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (8.0, 1.0), (1.0, 2.0), (2.0, 2.0), (2.0, 4.0)):
        results = [audited(epsilon, weaker, args.steps, seed) for seed in range(args.seeds)]
        cells = [f"{one.correct} of {one.made}" for one in results], [f"{one.bound:.2f}" for one in results]
        gaussian = [f"{one.gaussian:.2f}" for one in results]
        words = {True: "yes", False: "REFUTED", None: "cannot conclude"}
        passed = sorted({words[one.passed] for one in results})
        row = [f"{epsilon:g}", f"1/{weaker:g}", *(", ".join(part) for part in (*cells, gaussian, passed))]
        lines.append(f"| {' | '.join(row)} |")
    table("gradient_canaries", lines)


if __name__ == "__main__":
    main()
