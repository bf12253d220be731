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

BCE is class-balanced (pos_weight = N / (n_c K)) and masked where Y is NaN. AdamW; in each phase the learning rate rises
over a tenth of the steps, then falls as half a cosine. A low one keeps a student from agreeing with its teacher (0.26
against 0.72); a high one without the rise lost the code in the first epoch of an interaction (2 words of 16 in use).
Batch and words of a step are functions of (seed, generation, phase, step).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.chance import batch_indices, generator
from medlt.sparse.embedding import SimplicialCoder

Loss = Callable[[Tensor, Tensor, int], Tensor]


def pos_weight(labels: Tensor) -> Tensor:
    """N_c / (n_c K) of labels [N,K]: N_c known, n_c positive (taken as 1 where there is none). float32 [K]."""
    known, positive = (~labels.isnan()).sum(0), (labels == 1).sum(0)
    return known / (positive.clamp_min(1) * labels.shape[1])


def masked_bce(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Class-balanced binary cross-entropy, mean over the known labels; NaN labels carry no loss and no gradient."""
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), pos_weight=weight, reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)


def sample_words(s: Tensor, chance: torch.Generator) -> Tensor:
    """k [B,L,h,w], int64, with P(k = v) = s[:, :, v]: one draw for every group and pixel, by inverting the cdf."""
    cdf = s.movedim(2, -1).cumsum(-1)
    draw = torch.rand(cdf.shape[:-1], generator=chance).to(s.device)
    return (cdf < draw[..., None]).sum(-1).clamp_max(s.shape[2] - 1)


def speak(s: Tensor, chance: torch.Generator) -> Tensor:
    """One-hot words drawn from the code s [B,L,V,h,w], with the gradient of s (straight-through)."""
    said = F.one_hot(sample_words(s.detach(), chance), s.shape[2]).movedim(-1, 2).to(s)
    return said + s - s.detach()


def imitation_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy of student logits [B,L,V,h,w] with the teacher's sampled words [B,L,h,w]."""
    return F.cross_entropy(logits.movedim(2, 1), words)


@dataclass(frozen=True)
class Lesson:
    """What every phase of every generation shares. latents [N,C,h,w] may be memory-mapped; labels float32 [N,K]."""

    latents: Tensor
    labels: Tensor
    batch: int
    learning_rate: float
    weight_decay: float
    classification_weight: float
    seed: int
    device: str

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return max(1, len(self.latents) // self.batch)

    def draw(self, step: int, *key: object) -> tuple[Tensor, Tensor]:
        """Latents [B,C,h,w] and labels [B,K] of one step."""
        rows = torch.from_numpy(np.sort(batch_indices(len(self.latents), self.batch, step, self.seed, *key)))
        return self.latents[rows].float().to(self.device), self.labels[rows].to(self.device)

    def task_loss(self, coder: SimplicialCoder, s: Tensor, z: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """L1(D(s), z) + lambda BCE(C(s), Y)."""
        reconstruction = F.l1_loss(coder.decode(s), z)
        return reconstruction + self.classification_weight * masked_bce(coder.classify(s), y, weight)


def pace(step: int, steps: int) -> float:
    """Share of the learning rate at a step: up in a line over the first tenth, then down half a cosine. In (0,1]."""
    return min(1.0, (step + 1) / (0.1 * steps + 1)) * (1 + math.cos(math.pi * step / steps)) / 2


class Phase:
    """One optimiser over `parts` for `steps` steps; `run` does some of them."""

    def __init__(self, lesson: Lesson, parts: Sequence[nn.Module], steps: int, *key: object) -> None:
        self.lesson, self.steps, self.key = lesson, steps, key
        self.parameters = [p for part in parts for p in part.parameters()]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lesson.learning_rate, betas=(0.9, 0.99), weight_decay=lesson.weight_decay
        )

    def run(self, loss: Loss, steps: range) -> None:
        """Do the steps numbered `steps`, 0 <= step < self.steps."""
        for step in steps:
            z, y = self.lesson.draw(step, *self.key)
            for group in self.optimiser.param_groups:
                group["lr"] = self.lesson.learning_rate * pace(step, self.steps)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss(z, y, step))
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()


def imitate(lesson: Lesson, student: SimplicialCoder, teacher: SimplicialCoder, epochs: int, g: int) -> None:
    """The student's encoder learns to say what the teacher, frozen and in eval mode, says."""

    def loss(z: Tensor, y: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            said = sample_words(teacher.code(z), generator(lesson.seed, "words", g, step))
        return imitation_loss(student.logits(z), said)

    teacher.eval()
    student.train()
    steps = epochs * lesson.steps
    Phase(lesson, [student.encoder], steps, "imitation", g).run(loss, range(steps))
    student.eval()


def adapt(lesson: Lesson, student: SimplicialCoder, epochs: int, g: int) -> None:
    """Decoder and classifier learn to read the student; its encoder stays."""
    weight = pos_weight(lesson.labels).to(lesson.device)

    def loss(z: Tensor, y: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            s = speak(student.code(z), generator(lesson.seed, "adaptation words", g, step))
        return lesson.task_loss(student, s, z, y, weight)

    student.train()
    student.encoder.eval()
    steps = epochs * lesson.steps
    Phase(lesson, [student.decoder, student.classifier], steps, "adaptation", g).run(loss, range(steps))
    student.eval()


def interact(
    lesson: Lesson, coder: SimplicialCoder, epochs: int, patience: int, g: int, score: Callable[[], float]
) -> None:
    """Train all three; stop after `patience` epochs without a better `score()`; the coder ends as its best epoch."""
    weight = pos_weight(lesson.labels).to(lesson.device)
    phase = Phase(lesson, [coder], epochs * lesson.steps, "interaction", g)
    best, best_state, best_epoch = -math.inf, copy.deepcopy(coder.state_dict()), -1

    def loss(z: Tensor, y: Tensor, step: int) -> Tensor:
        s = speak(coder.code(z), generator(lesson.seed, "interaction words", g, step))
        return lesson.task_loss(coder, s, z, y, weight)

    for epoch in range(epochs):
        coder.train()
        phase.run(loss, range(epoch * lesson.steps, (epoch + 1) * lesson.steps))
        coder.eval()
        found = score()
        if found > best:
            best, best_state, best_epoch = found, copy.deepcopy(coder.state_dict()), epoch
        elif epoch - best_epoch >= patience:
            break
    coder.load_state_dict(best_state)
