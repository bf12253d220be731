"""One step of DP-SGD: sample units, sum their clipped gradients, add noise, update the weights.

In several processes the first one samples, and all take turns at the pieces of the batch. The clipped sums of all are
added, and the first one adds the noise, once, and sends the result to the others. So the step is that of one process,
also for a generator that cannot be drawn from again, and a process whose turn does not come adds 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medlt import processes
from medlt.privacy.dpsgd.budget import PrivacySettings
from medlt.privacy.dpsgd.canaries import Observer
from medlt.privacy.dpsgd.gradients import PerUnit
from medlt.privacy.dpsgd.randomness import Randomness
from medlt.privacy.dpsgd.units import Units, chunks
from medlt.rng import torch_generator
from medlt.training.checkpoint import State
from medlt.training.distributed import spread_gradients
from medlt.training.loop import stream
from medlt.training.protocols import RowLoss
from medlt.training.runtime import Precision
from medlt.types import InputError

CANARY_SCORES = "canary scores"
"""Key of the metadata of a training under which the scores of gradient canaries are kept."""


@dataclass
class Losses:
    """A row loss in the precision of the training, on its device."""

    loss: RowLoss
    device: torch.device
    precision: Precision

    def __call__(self, network: nn.Module, rows: np.ndarray, rng: torch.Generator, recorded: list[Tensor]) -> Tensor:
        """Return losses float32 [B] with their graph, and append them without it to `recorded`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            losses = self.loss(network, rows, rng).float()
        recorded.append(losses.detach())
        return losses


@dataclass
class PrivateStep:
    """The private `Step` of `medlt.training.loop.run`; `observer`: of the gradient canaries of an audit."""

    losses: Losses
    units: Units
    private: PrivacySettings
    gradients: PerUnit
    randomness: Randomness
    name: str
    observer: Observer | None = None

    def __call__(self, state: State) -> float:
        """Update the weights once. Return the mean loss, or NaN if no unit was sampled.

        Raises InputError for losses that are not finite, and if the loss reaches no weight.
        """
        drawn = self.randomness.at(state.step)
        rows, groups, secret = self._sampled(drawn)
        self.gradients.clear()
        mean = self._accumulate(state, rows, groups, secret)
        if len(rows) and not any(map(math.isfinite, state.losses)):
            self._assert_reached()
        if processes.first():
            self._add_noise(state, drawn)
        spread_gradients(state.parameters)
        state.optimizer.step()
        state.optimizer.zero_grad()
        return mean

    def _sampled(self, drawn: Randomness) -> tuple[np.ndarray, np.ndarray, float]:
        """Return rows and groups of this step (`Units.draw`) and the secret that seeds the losses' random numbers."""

        def sample() -> list[Any]:
            rows, groups = self.units.draw(drawn)
            return [rows.tolist(), groups.tolist(), float(drawn.uniform(1)[0])]

        rows, groups, secret = processes.value(sample)
        return np.array(rows, np.int64), np.array(groups, np.int64), secret

    def _add_noise(self, state: State, drawn: Randomness) -> None:
        """Give each weight its gradient, with noise, and record the scores of canaries."""
        if self.observer is not None:
            self.observer.insert([weight.summed_grad for weight in self.gradients.weights.values()], drawn)
        for weight in state.parameters:
            weight.grad = self._noised(weight, drawn, state.settings.batch_size)
        if self.observer is not None:
            self._observe(self.observer, state)

    def _observe(self, observer: Observer, state: State) -> None:
        """Add the scores of the canaries in this step to those of the training."""
        noised: list[Any] = [weight.grad for weight in self.gradients.weights.values()]
        before = torch.tensor(state.metadata.get(CANARY_SCORES, 0.0), dtype=torch.float64)
        state.metadata[CANARY_SCORES] = (before + observer.scores(noised, state.settings.batch_size)).tolist()

    def _accumulate(self, state: State, rows: np.ndarray, groups: np.ndarray, secret: float) -> float:
        """Add clipped sums to the weights, piece by piece, and over all processes. Return the mean loss.

        The random numbers of losses (timesteps, noise, augmentation) must be as secret as the sample of units. Those of
        a row depend on the rows before it, so a person who knew them could see one unit in the gradients of all others,
        which clipping does not bound.
        """
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        pieces = list(enumerate(chunks(groups, self.private.max_physical_batch_size)))
        for i, piece in pieces[processes.number() :: processes.count()]:
            rng = torch_generator(state.key, self.name, state.step, secret, i)
            with stream(self.losses.device, state.key, state.step, i, secret):
                loss = partial(self.losses, state.network, rows[piece], rng, losses)
                norms.append(self.gradients.accumulate(loss, groups[piece]))
        self.gradients.reduce()
        return _mean(losses, norms, state.step)

    def _assert_reached(self) -> None:
        """Raise InputError if no weight has a gradient before noise. Noise alone changes the weights, too."""
        if not any(bool(weight.summed_grad.any()) for weight in self.gradients.weights.values()):
            raise InputError(
                "private training: no trainable weight has a gradient in the first step, so only noise would be "
                "learnt; use a loss that depends on the trainable weights"
            )

    def _noised(self, weight: Any, drawn: Randomness, batch: int) -> Tensor:
        """Return (clipped sum + noise) / batch, added in float64 and rounded once (see `randomness`)."""
        total: Tensor = weight.summed_grad.double()
        if self.private.noise_multiplier:
            scale = self.private.noise_multiplier * self.private.max_grad_norm
            total += scale * drawn.normal(weight.shape, torch.float64).to(total.device)
        return (total / batch).to(weight.dtype)


def _mean(losses: Sequence[Tensor], norms: Sequence[Tensor], step: int) -> float:
    """Return the mean loss over all processes, NaN without a row.

    Raises InputError, in all of them, for a loss or a gradient that is not finite.
    """
    own, lengths = (torch.cat([torch.zeros(0), *(one.cpu() for one in parts)]) for parts in (losses, norms))
    finite = own.isfinite()
    sums = [own[finite].double().sum(), len(own), (~finite).sum(), (~lengths.isfinite()).sum()]
    total, count, bad, unbounded = processes.reduce(torch.tensor(sums, dtype=torch.float64)).tolist()
    if bad or unbounded:
        what = f"{bad:.0f} of {count:.0f} losses are" if bad else "a gradient is"
        raise InputError(
            f"private training: {what} not finite at step {step + 1}; lower learning_rate, or correct the rows"
        )
    return total / count if count else math.nan
