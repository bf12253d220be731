"""Iterated learning of a simplicial code under differential privacy: the same phases, each a private training.

Differences from `medlt.sparse.iterated`:

- Group norms replace batch norms, which mix rows (`SimplicialCoder(norm="group")`).
- All labels have the same weight, because class weights are counts of patients.
- All steps are taken and the last weights are kept, because early stopping selects by data outside of the ledger.
- `probe_ap` is NaN, because a probe fitted on the train rows is another statistic of them.
- Validation rows choose no generation, because their patients are in no ledger: the newest generation that is not
  collapsed is the result. A generation is collapsed if fewer tokens are in use than `medlt.sparse.collapse` allows on
  latents of standard normal noise. This is a function of private weights alone, so it costs no privacy. It finds a
  code of one token, and not one that is poor on radiographs only.
- A collapsed generation is not trained again: the budget is divided among the planned steps. The next generation does
  not imitate it. If there is no earlier one to imitate, it takes its interaction steps only, fewer than were planned.
- Metrics of the validation rows are still written to the table, for people; they are not private.
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
    n_units: int, batch_size: int, generations: int = 1, imitation_epochs: int = 8, adaptation_epochs: int = 1,
    interaction_epochs: int = 36,
) -> dict[str, int]:  # fmt: skip
    """Return the steps of each private training of `iterate`, by name and in their order.

    `n_units` is the public number of patients. An epoch has one step for each whole batch of `batch_size` units, and
    at least one.
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
    """The private training function, the patient of each row, and the steps of each phase (`private_steps`)."""

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
        setup: TrainingSetup,
        folder: Path,
    ) -> None:
        """Train `parts` of the coder privately. The coder ends in eval mode on the device of the setup."""
        if steps := self.steps.get(name, 0):
            coder.requires_grad_(False).train()
            for part in parts:
                part.requires_grad_(True)
            self.fit(coder, loss, self.patients, training=training(setup, steps), runtime=setup.runtime.at("fp32"),
                     folder=folder / underscored(name), key=digest(self.key, name), name=name)  # fmt: skip
        coder.to(setup.device).eval().requires_grad_(False)

    def phases(
        self, g: int, setup: TrainingSetup, coder: SimplicialCoder, teacher: SimplicialCoder | None, folder: Path
    ) -> Iterator[str]:
        """Train the phases of generation g in place, and yield the name of each finished one.

        Each phase writes its mechanism.json to its own folder below `folder`.
        """
        whole: list[tuple[str, list[nn.Module], RowLoss]] = [("interaction", [coder], interaction_loss(setup))]
        if teacher is not None:
            reading: list[nn.Module] = [coder.decoder, coder.classifier]
            whole = [("imitation", [coder.encoder], imitation_loss(setup, teacher)),
                     ("adaptation", reading, interaction_loss(setup)), *whole]  # fmt: skip
        for phase, parts, loss in whole:
            self.phase(f"sparse {phase} {g}", coder, parts, loss, setup, folder)
            yield phase

    def account(self, g: int, artifact: Artifact) -> None:
        """Add the phases of a finished generation to the ledger, whether trained now or loaded from the store.

        A generation without a teacher has one phase.
        """
        for name in self.steps:
            mechanism = artifact.path(f"{underscored(name)}/mechanism.json")
            if name.endswith(f" {g}") and mechanism.is_file():
                self.fit.account(mechanism)


def underscored(name: str) -> str:
    """Return the folder name of a phase."""
    return name.replace(" ", "_")


def training(setup: TrainingSetup, steps: int) -> Training:
    """Return the settings of one private phase, with the learning rate schedule of `medlt.sparse.phases`."""
    return replace(setup.training(steps), betas=(0.9, 0.999), checkpoint_every=500)


def require_patients(patients: Sequence[str], rows: int) -> Sequence[str]:
    """Return the patients. Raises InputError unless there is one for each row."""
    if len(patients) != rows:
        raise InputError(f"private training: {len(patients)} patients for {rows} latents; give one for each latent")
    return patients


def masked_bces(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of each row, the mean over its known labels, [B]; 0 without known labels."""
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    return torch.where(known, losses, 0.0).sum(1) / known.sum(1).clamp_min(1)


def _taken(setup: TrainingSetup, rows: np.ndarray, network: nn.Module) -> tuple[Tensor, Tensor]:
    """Return latents [B,C,h,w] and labels [B,K] of these rows, on the device of the network."""
    at, where = torch.as_tensor(rows), next(network.parameters()).device
    return setup.latents[at].float().to(where), setup.labels[at].to(where)


def imitation_loss(setup: TrainingSetup, teacher: SimplicialCoder) -> RowLoss:
    """Return the imitation loss of each row: the cross-entropy with sampled tokens of the teacher."""
    teacher.eval().requires_grad_(False)

    def each(coder: Any, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        z, _ = _taken(setup, rows, coder)
        with torch.no_grad():
            tokens = sample_tokens(teacher.to(z.device).code(z), rng)
        losses = F.cross_entropy(coder.logits(z).movedim(2, 1), tokens, reduction="none")
        return losses.flatten(1).mean(1)

    return each


def interaction_loss(setup: TrainingSetup) -> RowLoss:
    """Return the interaction loss of each row: L1(D(s), z) + lambda BCE(C(s), Y).

    In adaptation the encoder is frozen, so s has no gradient.
    """

    def each(coder: Any, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        z, y = _taken(setup, rows, coder)
        s = straight_through_sample(coder.code(z), rng)
        reconstruction: Tensor = (coder.decode(s) - z).abs().flatten(1).mean(1)
        return reconstruction + setup.classification_weight * masked_bces(coder.classify(s), y)

    return each
