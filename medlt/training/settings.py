"""How weights move: steps, learning rate, moving average, checkpoints, early stopping."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch

from medlt.files import digest
from medlt.types import InputError

T = TypeVar("T", bound=Any)

LEAST = {"steps": 1, "batch": 1, "accumulate": 1, "warmup_steps": 0, "weight_decay": 0}
FREE = {"accumulate", "checkpointing", "channels_last", "checkpoint_every", "evaluate_every", "stop_at"}
"""Settings that do not decide the weights; how often is measured does where patience is given."""


@dataclass(frozen=True)
class Part:
    """Piece `index` of `of` equal pieces of a step's batch: what one process sees in one forward pass."""

    index: int = 0
    of: int = 1

    def take(self, whole: T) -> T:
        """Return these rows of anything with one row an image of the whole batch: tensor, array or sequence."""
        rows = len(whole) // self.of
        piece: T = whole[self.index * rows : (self.index + 1) * rows]
        return piece


WHOLE = Part()


@dataclass(frozen=True)
class Training:
    """How weights move; `batch` images a step, in `accumulate` micro-batches on each process.

    The learning rate rises over `warmup_steps` and then stays, or falls by half a cosine to 0 at `steps`. With a cosine
    `steps` is therefore part of what the training is; `stop_at` ends it earlier, and it can be continued. A constant
    rate may be given more `steps` later. `ema` is the decay of the moving average of weights and buffers, 0 for none;
    with `ema_warmup` the decay is at most (1 + n) / (10 + n) after n updates. `clip` bounds the gradient's norm, inf is
    off. `checkpointing` recomputes activations in the backward pass: less memory, the same weights. `channels_last`
    lays convolutions out as 16-bit units want them. `checkpoint_every` None writes no checkpoint. `evaluate_every`
    None measures at each checkpoint; with `patience` the weights of the best measurement are kept, and training stops
    after so many without a better one. Raises InputError for values that cannot work.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    batch: int = 16
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 50
    ema: float = 0.999
    ema_warmup: bool = True
    accumulate: int = 1
    clip: float = 1.0
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    checkpointing: bool = False
    channels_last: bool = False
    checkpoint_every: int | None = 500
    evaluate_every: int | None = None
    patience: int | None = None
    stop_at: int | None = None

    def __post_init__(self) -> None:
        for name, low in LEAST.items():
            if not getattr(self, name) >= low:
                raise InputError(f"training: {name} is {getattr(self, name)}; give at least {low}")
        for name in ("checkpoint_every", "evaluate_every", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"training: {name} is {value}; give at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"training: {name} is {getattr(self, name)}; give more than 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"training: ema is {self.ema}; give a decay from 0 up to, not including, 1")
        if self.patience is not None and self.measured_every is None:
            raise InputError("training: patience counts measurements; give evaluate_every or checkpoint_every too")
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise InputError(f"training: stop_at is {self.stop_at}; give 1 to {self.steps}, the number of steps")

    @property
    def last(self) -> int:
        """The step this call ends at."""
        return self.steps if self.stop_at is None else self.stop_at

    @property
    def rows(self) -> int:
        """How many images one forward pass sees, of one process."""
        return self.batch // self.accumulate

    def share(self, step: int) -> float:
        """Return the share of the learning rate at step 0, 1, ..., in [0,1]; a lambda of torch's LambdaLR."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def parts(self, process: int, processes: int) -> list[Part]:
        """Return what this process computes of a step. Raises InputError if the batch does not divide."""
        of = processes * self.accumulate
        if self.batch % of:
            pieces = f"{processes} processes x {self.accumulate} micro-batches"
            raise InputError(f"a batch of {self.batch} does not divide into {pieces}; choose a multiple of {of}")
        return [Part(process * self.accumulate + i, of) for i in range(self.accumulate)]

    @property
    def measured_every(self) -> int | None:
        """The steps between two measurements."""
        return self.checkpoint_every if self.evaluate_every is None else self.evaluate_every

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        every = self.checkpoint_every
        return every is not None and (step % every == 0 or step == self.last)

    def measures(self, step: int) -> bool:
        """Return whether a measurement is due after `step` steps.

        With `patience` measurements decide the weights, and then none depends on where this call stops.
        """
        every, last = self.measured_every, self.last if self.patience is None else self.steps
        return every is not None and (step % every == 0 or step == last)

    def digest(self, steps: bool = True) -> str:
        """Name what decides the weights: neither how a batch is computed, nor where this call stops.

        Without `steps`, trainings that can be continued into one another have one name: those of a constant rate.
        """
        continued = not steps and self.schedule == "constant" and self.patience is None
        free = FREE | {"steps"} if continued else FREE
        every = None if self.patience is None else self.measured_every
        return digest({name: value for name, value in asdict(self).items() if name not in free}, every)


def layout(on: bool) -> torch.memory_format:
    """Return the memory format of convolutions: channels last, or contiguous."""
    return torch.channels_last if on else torch.contiguous_format
