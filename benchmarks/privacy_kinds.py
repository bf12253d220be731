"""What the audit detects of four small denoisers: two that learnt their images by heart, an ordinary and a private one.

    MEDLT_DATA=... python benchmarks/privacy_kinds.py [--size 64] [--steps 4000]

Radiographs of ChestX-ray14, one of each patient, are learnt in pixels (2 x 2 of them are a cell with 4 channels). The
over-trained ones saw 24 images; one of them saw these inverted and shifted, which the audit is not given. The ordinary
and the private one saw 600. Membership is measured against 300 validation and test patients, once on the images as they
are and once in the best of the views that the audit chooses. 64 samples are searched for copies.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from common import row_loss, table
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.privacy.accounting import Planned, calibrate
from medlt.privacy.audit.copies import search_copies
from medlt.privacy.audit.membership import Membership, calibrated, loss_scores, membership
from medlt.privacy.audit.plants import COMMON
from medlt.privacy.audit.search import low_pass, measures
from medlt.privacy.audit.viewed import View, best_view, chosen_views, lowest_loss, sample_rows
from medlt.privacy.dpsgd.training import PrivacySettings, fit_private
from medlt.rng import torch_generator
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import GradSampleMode

BATCH, EPSILON, DELTA, PRIVATE_BATCH, PRIVATE_STEPS, SAMPLES = 16, 8.0, 1e-5, 64, 300, 64


class Kind(NamedTuple):
    """A denoiser: number of its images, the view in which it sees them, and whether it is private."""

    members: int
    view: View = View()
    private: bool = False


KINDS = {
    "over-trained": Kind(24),
    "over-trained on inverted, shifted images": Kind(24, View(down=6, across=-4, inverted=True)),
    "ordinary": Kind(600),
    f"private, epsilon {EPSILON:g}": Kind(600, private=True),
}


def radiographs(size: int) -> tuple[Tensor, Tensor]:
    """One image of each of 600 train patients and of 300 others, float [N,1,size,size] in [0,1]."""
    folder = Path(os.environ["MEDLT_DATA"]) / "nih14"
    rows = pd.read_csv(folder / "labels.csv").drop_duplicates("patient_id").sample(frac=1, random_state=0)
    train = rows["split"] == "train"

    def read(part: pd.DataFrame) -> Tensor:
        shown = [
            Image.open(folder / path).convert("L").resize((size, size), Image.Resampling.BOX) for path in part["path"]
        ]
        return torch.from_numpy(np.stack([np.asarray(one) for one in shown]))[:, None].float() / 255

    return read(rows[train].head(600)), read(rows[~train].head(300))


def latents(images: Tensor) -> Tensor:
    """Images [B,1,S,S] as latents [B,4,S/2,S/2]."""
    return functional.pixel_unshuffle((images - 0.5) / 0.25, 2)


def trained(kind: Kind, images: Tensor, steps: int) -> Backbone:
    """A denoiser of these images in the kind's view."""
    torch.manual_seed(0)
    backbone = LabelUNet(channels=4, findings=1, width=32, levels=3, prediction="sample").backbone()
    loss = row_loss(backbone, latents(kind.view(images)))
    if kind.private:
        _privately(backbone, loss, len(images))
    else:
        optimizer = torch.optim.Adam(backbone.network.parameters(), 1e-3)
        for step in range(steps):
            draw = torch_generator("kinds", step)
            rows = torch.randint(0, len(images), (BATCH,), generator=draw).numpy()
            optimizer.zero_grad()
            torch.autograd.backward(loss(backbone.network, rows, draw).mean())
            optimizer.step()
    backbone.network.eval().requires_grad_(False)
    return backbone


def _privately(backbone: Backbone, loss: Callable[..., Tensor], patients: int) -> None:
    """Train the backbone with differential privacy."""
    noise = calibrate([Planned(PRIVATE_BATCH / patients, PRIVATE_STEPS)], EPSILON, DELTA)
    private = PrivacySettings(noise_multiplier=noise, epsilon=EPSILON, delta=DELTA, units=patients,
                              grad_sample_mode=GradSampleMode.BOOKKEEPING)  # fmt: skip
    training = Training(steps=PRIVATE_STEPS, batch_size=PRIVATE_BATCH, learning_rate=1e-3, warmup_steps=0,
                        checkpoint_every=PRIVATE_STEPS)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit_private(backbone.network, loss, [f"p{i}" for i in range(patients)], training=training, private=private,
                    runtime=Runtime("cpu", "fp32", None, 0), folder=Path(folder), key="k", name="denoiser",
                    data="d")  # fmt: skip


def attacked(backbone: Backbone, members: Tensor, others: Tensor) -> tuple[Membership, Membership, View]:
    """Membership by the images as they are, and in the best view; and the view of lowest loss."""
    shown, member = torch.cat([members, others]), np.arange(len(members) + len(others)) < len(members)
    some = shown[torch.from_numpy(sample_rows(len(shown), np.random.default_rng(0)))]
    views = chosen_views(
        lambda view: lowest_loss(-loss_scores(backbone, latents(view(some)), seed=0, timesteps=(200,), noises=1)[:, 0])
    )
    each = [loss_scores(backbone, latents(view(shown)), seed=0) for view in views]
    names = [f"p{i}" for i in range(len(shown))]
    own, best = (membership(calibrated(one), member, names, seed=0) for one in (each[0], best_view(each)))
    return own, best, views[1]


def searched(backbone: Backbone, members: Tensor, others: Tensor) -> str:
    """The result of the search for copies in samples of the denoiser."""
    steps = scheduler("ddim", 25)
    size = members.shape[-1] // 2
    noise = torch.randn(SAMPLES, 4, size, size, generator=torch_generator("kinds, samples"))
    with torch.no_grad():
        made = functional.pixel_shuffle(sample(backbone.denoiser(), from_noise(noise, steps), steps), 2) * 0.25 + 0.5
    patients = [[f"{side}{i}" for i in range(len(part))] for side, part in (("t", members), ("h", others))]
    found = search_copies(
        measures(lambda images: low_pass(images, 16)), made.clamp(0, 1), members, others, COMMON, seed=0, planted=50,
        uids=[f"s{i}" for i in range(SAMPLES)], train_patients=patients[0], held_out_patients=patients[1],
    )  # fmt: skip
    words = {True: "none detected", False: "DETECTED", None: "cannot conclude"}
    return f"{words[found.passed]}: {int(found.images['hit'].sum())} of {SAMPLES}"


def cell(result: Membership) -> str:
    """Whether members were detected, with the AUC and its interval."""
    return f"{'not detected' if result.passed else 'DETECTED'}: {result.auc}"


def main() -> None:
    """Write the table."""
    read = argparse.ArgumentParser()
    read.add_argument("--size", type=int, default=64)
    read.add_argument("--steps", type=int, default=4000)
    args = read.parse_args()
    train, others = radiographs(args.size)
    lines = [
        "| denoiser | images | members, as they are | members, best view | view | copies in samples |",
        "|---|---|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        members = train[: kind.members]
        backbone = trained(kind, members, args.steps)
        own, best, view = attacked(backbone, members, others)
        copies = searched(backbone, members, others)
        lines.append(f"| {name} | {kind.members} | {cell(own)} | {cell(best)} | {view} | {copies} |")
        print(lines[-1], flush=True)
    table("privacy_kinds", lines)


if __name__ == "__main__":
    main()
