"""Settings of a training: steps, learning rate, moving average, checkpoints, early stopping."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from medlt.files import digest
from medlt.types import InputError

T = TypeVar("T", bound=Any)

MINIMUM = {"steps": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "warmup_steps": 0, "weight_decay": 0}
NOT_IN_DIGEST = {
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "channels_last",
    "checkpoint_every",
    "evaluate_every",
    "stop_at",
}
"""Settings that do not change the weights. With patience, the interval of measurements does change them."""


@dataclass(frozen=True)
class BatchPart:
    """Part `index` of `of` equal parts of a step's batch: the rows of one forward pass of one process."""

    index: int = 0
    of: int = 1

    def take(self, whole: T) -> T:
        """Return the rows of this part of `whole`: a tensor, array or sequence with one row per image of the batch."""
        rows = len(whole) // self.of
        piece: T = whole[self.index * rows : (self.index + 1) * rows]
        return piece

    def share(self, entries: Tensor) -> float:
        """Return this part's share of the entries of the batch, times the number of parts; 0 if there are none.

        entries: how many entries of each row of the whole batch are in the mean, [rows], for example of known labels.
        A mean over the entries of a part, times this, has as its mean over all parts the mean over the batch.
        """
        whole = float(entries.sum())
        return self.of * float(self.take(entries).sum()) / whole if whole else 0.0


WHOLE = BatchPart()


@dataclass(frozen=True)
class Training:
    """Settings of a training; the defaults are those of a denoiser.

    batch_size: images per step, over all processes; gradient_accumulation_steps: micro-batches per step and process.
    lr_scheduler: the learning rate rises over `warmup_steps`; then it is constant, or falls as half a cosine to 0 at
        `steps`. With a cosine, `steps` changes the weights of every step, so a training cannot be extended; with a
        constant rate it can.
    stop_at: this call ends at that step; a later call continues.
    ema_decay: decay of the moving average of weights and buffers, 0 for none. With `ema_warmup` the decay is at most
        (1 + n) / (10 + n) after n updates.
    max_grad_norm: bound of the gradient's norm; inf switches clipping off.
    gradient_checkpointing: recompute activations in the backward pass: less memory, the same weights.
    channels_last: memory format of convolutions that 16-bit arithmetic prefers.
    checkpoint_every: steps between two checkpoints; None writes none.
    evaluate_every: steps between two measurements; None measures at each checkpoint.
    patience: keep the weights of the best score, and stop after so many measurements without a better one.

    Raises InputError for invalid values.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    batch_size: int = 16
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 50
    ema_decay: float = 0.999
    ema_warmup: bool = True
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_checkpointing: bool = False
    channels_last: bool = False
    checkpoint_every: int | None = 500
    evaluate_every: int | None = None
    patience: int | None = None
    stop_at: int | None = None

    def __post_init__(self) -> None:
        for name, low in MINIMUM.items():
            if not getattr(self, name) >= low:
                raise InputError(f"training: {name} is {getattr(self, name)}; give at least {low}")
        for name in ("checkpoint_every", "evaluate_every", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"training: {name} is {value}; give at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"training: {name} is {getattr(self, name)}; give more than 0")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"training: ema_decay is {self.ema_decay}; give a decay from 0 up to, not including, 1")
        if self.patience is not None and self.measured_every is None:
            raise InputError("training: patience counts measurements; give evaluate_every or checkpoint_every too")
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise InputError(f"training: stop_at is {self.stop_at}; give 1 to {self.steps}, the number of steps")

    @property
    def last(self) -> int:
        """The step at which this call ends."""
        return self.steps if self.stop_at is None else self.stop_at

    @property
    def rows(self) -> int:
        """The number of images in one forward pass of one process."""
        return self.batch_size // self.gradient_accumulation_steps

    def lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate at step 0, 1, ..., in [0,1], for torch's LambdaLR."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.lr_scheduler == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def parts(self, process: int, processes: int) -> list[BatchPart]:
        """Return the parts of a step's batch that this process computes.

        Raises InputError if the batch does not divide.
        """
        of = processes * self.gradient_accumulation_steps
        if self.batch_size % of:
            wanted = f"{processes} processes x {self.gradient_accumulation_steps} micro-batches"
            raise InputError(f"a batch of {self.batch_size} does not divide into {wanted}; choose a multiple of {of}")
        pieces = self.gradient_accumulation_steps
        return [BatchPart(process * pieces + i, of) for i in range(pieces)]

    @property
    def measured_every(self) -> int | None:
        """The number of steps between two measurements."""
        return self.checkpoint_every if self.evaluate_every is None else self.evaluate_every

    def saves(self, step: int) -> bool:
        """Return True if a checkpoint is due after `step` steps."""
        every = self.checkpoint_every
        return every is not None and (step % every == 0 or step == self.last)

    def measures(self, step: int) -> bool:
        """Return True if a measurement is due after `step` steps.

        With `patience` the measurements decide the weights; they do not depend on the step at which this call ends.
        """
        every, last = self.measured_every, self.last if self.patience is None else self.steps
        return every is not None and (step % every == 0 or step == last)

    def digest(self, steps: bool = True) -> str:
        """Return the digest of the settings that decide the weights.

        It leaves out how a batch is computed and where this call ends. With `steps` False, trainings that continue one
        another share a digest: those with a constant learning rate differ in their number of steps only.
        """
        continued = not steps and self.lr_scheduler == "constant" and self.patience is None
        left_out = NOT_IN_DIGEST | {"steps"} if continued else NOT_IN_DIGEST
        every = None if self.patience is None else self.measured_every
        return digest({name: value for name, value in asdict(self).items() if name not in left_out}, every)


def layout(on: bool) -> torch.memory_format:
    """Return the memory format of convolutions: channels last, or contiguous."""
    return torch.channels_last if on else torch.contiguous_format
