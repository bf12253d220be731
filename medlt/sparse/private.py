"""Iterated learning of a simplicial code under differential privacy: the same phases, each a private training.

What differs from `medlt.sparse.iterated`, and why: batch norms mix rows, so group norms stand in their place
(`SimplicialCoder(norm="group")`); class weights are counts of patients, so no label weighs more than another; an early
stop and the best epoch would be choices by data outside the ledger, so all steps are made and the last weights kept;
a probe fitted on the trained rows would be one more statistic of them, so `probe_ap` is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.files import digest
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.phases import TrainingSetup, sample_tokens, straight_through_sample
from medlt.store import Artifact
from medlt.training.protocols import PrivateFit, RowLoss
from medlt.training.settings import Training
from medlt.types import InputError


def private_steps(
    n_units: int, batch_size: int, generations: int = 5, imitation_epochs: int = 8, adaptation_epochs: int = 1,
    interaction_epochs: int = 6,
) -> dict[str, int]:  # fmt: skip
    """Return steps of each private training that `iterate` makes of `n_units` patients, by name, in their order.

    An epoch is as many steps of `batch` units as there are whole batches, at least one.
    """
    epoch = max(1, n_units // batch_size)
    first = {"imitation": imitation_epochs, "adaptation": adaptation_epochs, "interaction": interaction_epochs}
    return {
        f"sparse {phase} {g}": epochs * epoch
        for g in range(generations)
        for phase, epochs in first.items()
        if epochs and (g or phase == "interaction")
    }


@dataclass(frozen=True)
class PrivatePhases:
    """Who trains, whose each row is, and the steps of each phase by its name (`private_steps`)."""

    fit: PrivateFit
    patients: Sequence[str]
    steps: dict[str, int]
    key: str

    def phase(
        self,
        name: str,
        coder: SimplicialCoder,
        parts: Sequence[nn.Module],
        loss: RowLoss,
        lesson: TrainingSetup,
        folder: Path,
    ) -> None:
        """Return one private training of `parts` of the coder, which ends in eval mode on the lesson's device."""
        if steps := self.steps.get(name, 0):
            coder.requires_grad_(False).train()
            for part in parts:
                part.requires_grad_(True)
            self.fit(coder, loss, self.patients, training=training(lesson, steps), runtime=lesson.runtime.at("fp32"),
                     folder=folder / underscored(name), key=digest(self.key, name), name=name)  # fmt: skip
        coder.to(lesson.device).eval().requires_grad_(False)

    def phases(
        self, g: int, lesson: TrainingSetup, coder: SimplicialCoder, teacher: SimplicialCoder | None, folder: Path
    ) -> Iterator[str]:
        """Make the phases of generation g, in place; yields the name of each one that was made.

        Each writes its mechanism.json into a folder of its own below `folder`.
        """
        whole: list[tuple[str, list[nn.Module], RowLoss]] = [("interaction", [coder], interaction_loss(lesson))]
        if teacher is not None:
            reading: list[nn.Module] = [coder.decoder, coder.classifier]
            whole = [("imitation", [coder.encoder], imitation_loss(lesson, teacher)),
                     ("adaptation", reading, interaction_loss(lesson)), *whole]  # fmt: skip
        for phase, parts, loss in whole:
            self.phase(f"sparse {phase} {g}", coder, parts, loss, lesson, folder)
            yield phase

    def account(self, g: int, artifact: Artifact) -> None:
        """Tell the ledger of the phases of a finished generation, made or found."""
        for name in self.steps:
            if name.endswith(f" {g}"):
                self.fit.account(artifact.path(f"{underscored(name)}/mechanism.json"))


def underscored(name: str) -> str:
    """Return the name of a phase as that of its folder."""
    return name.replace(" ", "_")


def training(lesson: TrainingSetup, steps: int) -> Training:
    """Return settings of one private phase; the learning rate goes as in `medlt.sparse.phases`."""
    return replace(lesson.training(steps), betas=(0.9, 0.999), checkpoint_every=500)


def require_patients(patients: Sequence[str], rows: int) -> Sequence[str]:
    """Return the same, one a row. Raises InputError where that is not so."""
    if len(patients) != rows:
        raise InputError(f"private training: {len(patients)} patients for {rows} latents; give one a latent")
    return patients


def masked_bces(logits: Tensor, labels: Tensor) -> Tensor:
    """Return binary cross-entropy of each row [B], the mean over its known labels; 0 where none is. Both [B,K]."""
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    return torch.where(known, losses, 0.0).sum(1) / known.sum(1).clamp_min(1)


def _taken(lesson: TrainingSetup, rows: np.ndarray, network: nn.Module) -> tuple[Tensor, Tensor]:
    """Return latents [B,C,h,w] and labels [B,K] of these rows, where the network is."""
    at, where = torch.as_tensor(rows), next(network.parameters()).device
    return lesson.latents[at].float().to(where), lesson.labels[at].to(where)


def imitation_loss(lesson: TrainingSetup, teacher: SimplicialCoder) -> RowLoss:
    """Return cross-entropy of each row with the words that the teacher says of it."""
    teacher.eval().requires_grad_(False)

    def each(coder: Any, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        z, _ = _taken(lesson, rows, coder)
        with torch.no_grad():
            said = sample_tokens(teacher.to(z.device).code(z), draw)
        losses = F.cross_entropy(coder.logits(z).movedim(2, 1), said, reduction="none")
        return losses.flatten(1).mean(1)

    return each


def interaction_loss(lesson: TrainingSetup) -> RowLoss:
    """Return L1(D(s), z) + lambda BCE(C(s), Y) of each row; in adaptation the encoder is frozen, and s has no gradient."""

    def each(coder: Any, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        z, y = _taken(lesson, rows, coder)
        s = straight_through_sample(coder.code(z), draw)
        reconstruction: Tensor = (coder.decode(s) - z).abs().flatten(1).mean(1)
        return reconstruction + lesson.classification_weight * masked_bces(coder.classify(s), y)

    return each
