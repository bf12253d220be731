"""The three phases of a generation: imitation, adaptation, interaction (see `medlt.sparse.iterated` for the loop).

| phase | learns | loss |
|---|---|---|
| imitation | E | cross-entropy(student logits, k), k ~ Cat(teacher code) for every group and pixel |
| adaptation | D, C | L1(D(s), z) + lambda BCE(C(s), Y), s from the student, frozen |
| interaction | E, D, C | the same, stopped early on validation macro AP |

In adaptation and interaction D and C are given words drawn from the code, one-hot, with the gradient of the code
(straight-through, arXiv 1308.3432). Given the probabilities themselves, D learns to read them as real numbers, and the
code drifts away from sparse: mean max-probability fell from 0.82 to 0.29 in one generation on NIH radiographs. Drawn
words make doubt cost reconstruction, and D and C are what a fused code, near one-hot, needs.

BCE is class-balanced (pos_weight = N / (n_c K)) and masked where Y is NaN. Each phase is one call of the one training
loop (`medlt.training.loop.fit`): AdamW, whose learning rate rises over a tenth of the steps, then falls as half a
cosine. A low one keeps a student from agreeing with its teacher (0.26 against 0.72); a high one without the rise lost
the code in the first epoch of an interaction (2 words of 16 in use).
Batch and words of a step are functions of (seed, generation, phase, step).
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
from medlt.sparse.embedding import SimplicialCoder
from medlt.training import loop
from medlt.training.runtime import Runtime, silent
from medlt.training.settings import BatchPart, Training

Loss = Callable[[Tensor, Tensor, int], Tensor]
"""(latents [B,C,h,w], labels [B,K], step) -> the loss of the step, with its graph."""

CHECKPOINT = 1000
"""Steps between two checkpoints; a phase of no more steps writes none, and begins anew when it was killed."""


def pos_weight(labels: Tensor) -> Tensor:
    """Return n_c / (n_c K) of labels [N,K]: N_c known, n_c positive (taken as 1 where there is none). float32 [K]."""
    known, positive = (~labels.isnan()).sum(0), (labels == 1).sum(0)
    return known / (positive.clamp_min(1) * labels.shape[1])


def masked_bce(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return the class-balanced binary cross-entropy, mean over the known labels; NaN labels carry no loss and no gradient."""
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), pos_weight=weight, reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)


def sample_tokens(s: Tensor, rng: torch.Generator) -> Tensor:
    """Return k [B,L,h,w], int64, with P(k = v) = s[:, :, v]: one draw for every group and pixel, by inverting the cdf."""
    cdf = s.movedim(2, -1).cumsum(-1)
    draw = torch.rand(cdf.shape[:-1], generator=rng).to(s.device)
    return (cdf < draw[..., None]).sum(-1).clamp_max(s.shape[2] - 1)


def straight_through_sample(s: Tensor, rng: torch.Generator) -> Tensor:
    """Return one-hot words drawn from the code s [B,L,V,h,w], with the gradient of s (straight-through)."""
    said = F.one_hot(sample_tokens(s.detach(), rng), s.shape[2]).movedim(-1, 2).to(s)
    return said + s - s.detach()


def imitation_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Return cross-entropy of student logits [B,L,V,h,w] with the teacher's sampled words [B,L,h,w]."""
    return F.cross_entropy(logits.movedim(2, 1), words)


@dataclass(frozen=True)
class TrainingSetup:
    """What every phase of every generation shares. latents [N,C,h,w] may be memory-mapped; labels float32 [N,K].

    Seed and device are the runtime's; all is computed in float32, whatever its precision: at temperatures far below 1
    the rounding of bfloat16 would choose words.
    """

    latents: Tensor
    labels: Tensor
    batch_size: int
    learning_rate: float
    weight_decay: float
    classification_weight: float
    runtime: Runtime

    @property
    def seed(self) -> int:
        """The runtime's seed."""
        return self.runtime.seed

    @property
    def device(self) -> torch.device:
        """The runtime's device. Raises InputError where torch has none such."""
        return self.runtime.at("fp32").torch_device("sparse code")

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return max(1, len(self.latents) // self.batch_size)

    def training(self, steps: int, **more: Any) -> Training:
        """Return the settings of the loop for a phase of `steps`; more: further fields of Training."""
        same = {name: getattr(self, name) for name in ("batch_size", "learning_rate", "weight_decay")}
        return Training(steps=steps, lr_scheduler="cosine", warmup_steps=round(0.1 * steps), ema_decay=0.0, betas=(0.9, 0.99),
                        checkpoint_every=CHECKPOINT if steps > CHECKPOINT else None, **same, **more)  # fmt: skip

    def draw(self, step: int, part: BatchPart, *key: object) -> tuple[Tensor, Tensor]:
        """Return latents [B,C,h,w] and labels [B,K] of a part of one step."""
        rows = np.sort(batch_indices(len(self.latents), self.batch_size, step, self.seed, *key))
        at = torch.from_numpy(part.take(rows))
        return self.latents[at].float().to(self.device), self.labels[at].to(self.device)

    def task_loss(self, coder: SimplicialCoder, s: Tensor, z: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """Return L1(D(s), z) + lambda BCE(C(s), Y)."""
        reconstruction = F.l1_loss(coder.decode(s), z)
        return reconstruction + self.classification_weight * masked_bce(coder.classify(s), y, weight)

    def fit(
        self, coder: SimplicialCoder, parts: nn.Module, loss: Loss, phase: str, g: int, epochs: int,
        folder: Path | None, evaluate: Callable[[nn.Module], float] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Train `parts` of the coder for `epochs`, maybe none; the coder ends on the device, in evaluation mode."""
        coder.to(self.device).eval().requires_grad_(False)
        if epochs:
            parts.requires_grad_(True)

            def loss_of(network: nn.Module, step: int, part: BatchPart) -> Tensor:
                z, y = self.draw(step, part, phase, g)
                return loss(z, y, step)

            loop.fit(
                parts,
                loss_of,
                self.training(epochs * self.steps, **more),
                runtime=replace(self.runtime.at("fp32"), progress=silent),
                folder=None if folder is None else folder / "checkpoint" / phase,
                key=digest("sparse", phase, g, self.seed),
                name=f"sparse {phase} {g}",
                evaluate=evaluate,
            )
        coder.to(self.device).eval().requires_grad_(False)


def imitate(
    lesson: TrainingSetup,
    student: SimplicialCoder,
    teacher: SimplicialCoder,
    epochs: int,
    g: int,
    folder: Path | None = None,
) -> None:
    """Return the student's encoder learns to say what the teacher, frozen and in eval mode, says.

    `folder`, here and below, is the work folder that checkpoints of this generation go into.
    """
    teacher.to(lesson.device).eval().requires_grad_(False)

    def loss(z: Tensor, y: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            said = sample_tokens(teacher.code(z), torch_generator(lesson.seed, "words", g, step))
        return imitation_loss(student.logits(z), said)

    lesson.fit(student, student.encoder, loss, "imitation", g, epochs, folder)


def adapt(lesson: TrainingSetup, student: SimplicialCoder, epochs: int, g: int, folder: Path | None = None) -> None:
    """Return decoder and classifier learn to read the student; its encoder stays."""
    weight = pos_weight(lesson.labels).to(lesson.device)

    def loss(z: Tensor, y: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            s = straight_through_sample(student.code(z), torch_generator(lesson.seed, "adaptation words", g, step))
        return lesson.task_loss(student, s, z, y, weight)

    reading = nn.ModuleList([student.decoder, student.classifier])
    lesson.fit(student, reading, loss, "adaptation", g, epochs, folder)


def interact(
    lesson: TrainingSetup, coder: SimplicialCoder, epochs: int, patience: int, g: int, score: Callable[[], float],
    folder: Path | None = None,
) -> None:  # fmt: skip
    """Train all three; stop after `patience` epochs without a better `score()`; the coder ends as its best epoch."""
    weight = pos_weight(lesson.labels).to(lesson.device)

    def loss(z: Tensor, y: Tensor, step: int) -> Tensor:
        s = straight_through_sample(coder.code(z), torch_generator(lesson.seed, "interaction words", g, step))
        return lesson.task_loss(coder, s, z, y, weight)

    lesson.fit(coder, coder, loss, "interaction", g, epochs, folder, evaluate=lambda network: score(),
               evaluate_every=lesson.steps, patience=patience)  # fmt: skip
