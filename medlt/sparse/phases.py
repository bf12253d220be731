"""The three phases of a generation: imitation, adaptation, interaction (see `medlt.sparse.iterated` for the loop).

| phase | learns | loss |
|---|---|---|
| imitation | E | cross-entropy(student logits, k), k ~ Cat(teacher code) for every group and pixel |
| adaptation | D, C | L1(D(s), z) + lambda BCE(C(s), Y), s from the student, frozen |
| interaction | E, D, C | the same, stopped early on validation macro AP |

In adaptation and interaction, the inputs of D and C are tokens sampled from the code, one-hot, with the gradient of the
code (straight-through, arXiv 1308.3432). With the probabilities themselves as inputs, D uses them as real numbers and
the code loses its sparsity: on NIH radiographs the mean max-probability fell from 0.82 to 0.29 in one generation.
Sampled tokens make uncertainty cost reconstruction, and prepare D and C for fused codes, which are near one-hot.

BCE is class-balanced (pos_weight = N / (n_c K)) and masked where Y is NaN. Each phase is one call of the training loop
(`medlt.training.loop.fit`) with AdamW. The learning rate rises over a tenth of the steps, then falls as half a cosine.
With a low rate, students agree less with their teachers (0.26 against 0.72). A high rate without warm-up lost the code
in the first epoch of an interaction (2 of 16 tokens in use). Batch and tokens of a step are functions of (seed,
generation, phase, step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.files import digest
from medlt.rng import batch_indices, torch_generator
from medlt.rows import Rows
from medlt.sparse.embedding import SimplicialCoder
from medlt.training import loop
from medlt.training.batches import StepBatches
from medlt.training.runtime import Runtime, silent
from medlt.training.settings import WHOLE, BatchPart, Training


@dataclass(frozen=True)
class Piece:
    """A part of a step's batch: latents z [B,C,h,w] and labels y [B,K]; known: `BatchPart.share` of known labels."""

    z: Tensor
    y: Tensor
    step: int
    part: BatchPart
    known: float


Loss = Callable[[Piece], Tensor]
"""Function of a piece that returns its loss, with its graph; the mean over the pieces is the loss of the step."""

CHECKPOINT = 1000
"""Steps between two checkpoints. A phase with fewer steps writes none, and starts again if it was killed."""


def pos_weight(labels: Tensor) -> Tensor:
    """Return N_c / (n_c K) of labels [N,K], float32 [K]: N_c known and n_c positive labels (at least 1)."""
    known, positive = (~labels.isnan()).sum(0), (labels == 1).sum(0)
    return known / (positive.clamp_min(1) * labels.shape[1])


def masked_bce(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return the class-balanced binary cross-entropy over known labels; NaN labels have no loss and no gradient."""
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), pos_weight=weight, reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)


def sample_tokens(s: Tensor, rng: torch.Generator, part: BatchPart = WHOLE) -> Tensor:
    """Return tokens k int64 [B,L,h,w] with P(k = v) = s[:, :, v], drawn for every group and pixel by inverse cdf.

    Numbers are drawn for the whole batch of which s is `part`.
    """
    cdf = s.movedim(2, -1).cumsum(-1)
    draw = part.take(torch.rand((len(s) * part.of, *cdf.shape[1:-1]), generator=rng)).to(s.device)
    return (cdf < draw[..., None]).sum(-1).clamp_max(s.shape[2] - 1)


def straight_through_sample(s: Tensor, rng: torch.Generator, part: BatchPart = WHOLE) -> Tensor:
    """Return one-hot tokens sampled from the code s [B,L,V,h,w], with the gradient of s (straight-through)."""
    sampled = F.one_hot(sample_tokens(s.detach(), rng, part), s.shape[2]).movedim(-1, 2).to(s)
    return sampled + s - s.detach()


def imitation_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of student logits [B,L,V,h,w] with sampled tokens of the teacher [B,L,h,w]."""
    return F.cross_entropy(logits.movedim(2, 1), tokens)


@dataclass(frozen=True)
class TrainingSetup:
    """Data and settings of all phases. latents [N,C,h,w] may be memory-mapped; labels float32 [N,K].

    The precision is always float32: at temperatures far below 1, the rounding of bfloat16 would decide between tokens.
    """

    latents: Rows
    labels: Tensor
    batch_size: int
    learning_rate: float
    weight_decay: float
    classification_weight: float
    runtime: Runtime

    @property
    def seed(self) -> int:
        """The seed of the runtime."""
        return self.runtime.seed

    @property
    def device(self) -> torch.device:
        """The device of the runtime. Raises InputError if torch does not have it."""
        return self.runtime.at("fp32").torch_device("sparse code")

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return max(1, len(self.latents) // self.batch_size)

    def training(self, steps: int, **more: Any) -> Training:
        """Return the settings of the loop for a phase of `steps`; more: other fields of `Training`."""
        same = {name: getattr(self, name) for name in ("batch_size", "learning_rate", "weight_decay")}
        return Training(
            steps=steps, lr_scheduler="cosine", warmup_steps=round(0.1 * steps), ema_decay=0.0, betas=(0.9, 0.99),
            checkpoint_every=CHECKPOINT if steps > CHECKPOINT else None, **same, **more,
        )  # fmt: skip

    def draw(self, step: int, *key: object) -> tuple[Tensor, Tensor]:
        """Return the latents [B,C,h,w] and labels [B,K] of one step, on the CPU."""
        at = torch.from_numpy(np.sort(batch_indices(len(self.latents), self.batch_size, step, self.seed, *key)))
        return self.latents[at].float(), self.labels[at]

    def task_loss(self, coder: SimplicialCoder, s: Tensor, piece: Piece, weight: Tensor) -> Tensor:
        """Return L1(D(s), z) + lambda BCE(C(s), Y)."""
        reconstruction = F.l1_loss(coder.decode(s), piece.z)
        labels = masked_bce(coder.classify(s), piece.y, weight) * piece.known
        return reconstruction + self.classification_weight * labels

    def fit(
        self, coder: SimplicialCoder, parts: nn.Module, loss: Loss, phase: str, g: int, epochs: int,
        folder: Path | None, evaluate: Callable[[nn.Module], float] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Train `parts` of the coder for `epochs`, which may be 0. The coder ends on the device, in eval mode."""
        coder.to(self.device).eval().requires_grad_(False)
        if epochs:
            parts.requires_grad_(True)

            def loss_of(network: nn.Module, step: int, part: BatchPart) -> Tensor:
                z, y = batches(step)
                known = part.share((~y.isnan()).sum(1))
                return loss(Piece(part.take(z).to(self.device), part.take(y).to(self.device), step, part, known))

            training = self.training(epochs * self.steps, **more)
            with StepBatches(lambda step: self.draw(step, phase, g), training.last) as batches:
                loop.fit(
                    parts,
                    loss_of,
                    training,
                    runtime=replace(self.runtime.at("fp32"), progress=silent),
                    folder=None if folder is None else folder / "checkpoint" / phase,
                    key=digest("sparse", phase, g, self.seed),
                    name=f"sparse {phase} {g}",
                    evaluate=evaluate,
                )
        coder.to(self.device).eval().requires_grad_(False)


def imitate(
    setup: TrainingSetup,
    student: SimplicialCoder,
    teacher: SimplicialCoder,
    epochs: int,
    g: int,
    folder: Path | None = None,
) -> None:
    """Train the student's encoder to predict tokens of the teacher, which is frozen and in eval mode.

    `folder`, here and below, is the work folder for checkpoints of this generation.
    """
    teacher.to(setup.device).eval().requires_grad_(False)

    def loss(piece: Piece) -> Tensor:
        with torch.no_grad():
            rng = torch_generator(setup.seed, "words", g, piece.step)
            tokens = sample_tokens(teacher.code(piece.z), rng, piece.part)
        return imitation_loss(student.logits(piece.z), tokens)

    setup.fit(student, student.encoder, loss, "imitation", g, epochs, folder)


def adapt(setup: TrainingSetup, student: SimplicialCoder, epochs: int, g: int, folder: Path | None = None) -> None:
    """Train decoder and classifier on the codes of the student, whose encoder is frozen."""
    weight = pos_weight(setup.labels).to(setup.device)

    def loss(piece: Piece) -> Tensor:
        with torch.no_grad():
            rng = torch_generator(setup.seed, "adaptation words", g, piece.step)
            s = straight_through_sample(student.code(piece.z), rng, piece.part)
        return setup.task_loss(student, s, piece, weight)

    reading = nn.ModuleList([student.decoder, student.classifier])
    setup.fit(student, reading, loss, "adaptation", g, epochs, folder)


def interact(
    setup: TrainingSetup, coder: SimplicialCoder, epochs: int, patience: int, g: int, score: Callable[[], float],
    folder: Path | None = None,
) -> None:  # fmt: skip
    """Train encoder, decoder and classifier; stop after `patience` epochs without a better `score()`.

    The coder gets the weights of its best epoch.
    """
    weight = pos_weight(setup.labels).to(setup.device)

    def loss(piece: Piece) -> Tensor:
        rng = torch_generator(setup.seed, "interaction words", g, piece.step)
        return setup.task_loss(coder, straight_through_sample(coder.code(piece.z), rng, piece.part), piece, weight)

    setup.fit(coder, coder, loss, "interaction", g, epochs, folder, evaluate=lambda network: score(),
               evaluate_every=setup.steps, patience=patience)  # fmt: skip
