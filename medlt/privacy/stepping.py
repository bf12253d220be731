"""One step of DP-SGD: units drawn, their clipped gradients summed, noise on the sum, an update of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlt import chance
from medlt.diffusion.checkpoint import State, write
from medlt.diffusion.loop import Training, stream
from medlt.diffusion.tracking import Track
from medlt.privacy.budget import Private
from medlt.privacy.gradients import PerUnit
from medlt.privacy.randomness import Randomness
from medlt.privacy.units import Units, chunks
from medlt.types import InputError, RowLoss


@dataclass
class Run:
    """One private training under way."""

    state: State
    loss: RowLoss
    units: Units
    training: Training
    private: Private
    gradients: PerUnit
    randomness: Randomness
    accelerator: Any
    name: str

    def step(self) -> None:
        """One update. Raises InputError for losses that are no numbers, and where no weight is reached."""
        drawn = self.randomness.at(self.state.step)
        rows, groups = self.units.draw(drawn)
        self.gradients.clear()
        losses = self._accumulate(rows, groups, float(drawn.uniform(1)[0]))
        if len(losses) and not any(map(math.isfinite, self.state.losses)):
            self._assert_reached()
        for weight in self.state.parameters:
            weight.grad = self._noised(weight, drawn)
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.training.rate(self.state.step)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        self.state.advance(float(np.mean(losses)) if len(losses) else math.nan)

    def _accumulate(self, rows: np.ndarray, groups: np.ndarray, secret: float) -> np.ndarray:
        """Clipped sums onto the weights, piece by piece; losses [B].

        What losses draw (timesteps, noise, augmentation) must be as secret as who is drawn: a row's draws depend on the
        rows before it, so whoever knew them could see one unit in the gradients of all others, which no clip bounds.
        """
        losses: list[Tensor] = []
        draw = chance.generator(self.state.key, self.name, self.state.step, secret)
        for i, piece in enumerate(chunks(groups, self.private.physical)):
            with stream(self.accelerator, self.state.key, self.state.step, i, secret):
                norms = self.gradients.accumulate(partial(self.losses, rows[piece], draw, losses), groups[piece])
            self._assert_finite(losses[-1], norms)
        return torch.cat(losses).cpu().numpy() if losses else np.zeros(0)

    def losses(self, rows: np.ndarray, draw: torch.Generator, told: list[Tensor]) -> Tensor:
        """Losses [B] with their graph, in the training's precision; without it, onto `told`."""
        device = self.accelerator.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.training.precision == "bf16"):
            found = self.loss(self.state.network, rows, draw).float()
        told.append(found.detach())
        return found

    def _assert_finite(self, losses: Tensor, norms: Tensor) -> None:
        bad = int((~losses.isfinite()).sum())
        if bad or not norms.isfinite().all():
            what = f"{bad} of {len(losses)} losses are" if bad else "a gradient is"
            raise InputError(
                f"private training: {what} no number at step {self.state.step + 1}; lower the learning rate, or mend "
                "the rows"
            )

    def _assert_reached(self) -> None:
        """Noise alone moves weights, so that weights moved says nothing: the gradient before noise has to be there."""
        if not any(bool(weight.summed_grad.any()) for weight in self.gradients.weights.values()):
            raise InputError(
                "private training: no trainable weight has a gradient in the first step; the loss does not depend on "
                "them, and only noise would be learnt"
            )

    def _noised(self, weight: Any, drawn: Randomness) -> Tensor:
        """(clipped sum + noise) / batch, added up in float64 and rounded once, for the reason `randomness` gives."""
        total: Tensor = weight.summed_grad.double()
        if self.private.noise_multiplier:
            scale = self.private.noise_multiplier * self.private.clip
            total += scale * drawn.normal(weight.shape, torch.float64).to(total.device)
        return (total / self.training.batch).to(weight.dtype)

    def checkpoint(self, track: Track) -> None:
        """Measure and picture the moving average, then save. Raises InputError for weights that are no numbers."""
        if not all(bool(weight.isfinite().all()) for weight in self.state.ema.shadow_params):
            raise InputError(f"weights are no numbers at step {self.state.step}; lower the learning rate")
        with self.state.averaged(), torch.no_grad():
            track.checkpoint(self.accelerator, self.state)
        write(self.state, Path(track.folder))
