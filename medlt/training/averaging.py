"""The moving average of a training's weights: torch's AveragedModel with an exponential rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Moving(nn.Module):
    """The weights that are trained and the buffers that follow them: what a moving average is taken of."""

    def __init__(self, network: nn.Module, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters)
        for number, buffer in enumerate(network.buffers()):
            self.register_buffer(f"buffer_{number}", buffer)

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        return [*self.parameters(), *self.buffers()]


def _averaging(decay: float, warmup: bool) -> Callable[[Any, Any, Any], None]:
    """Return the update of torch's AveragedModel: an exponential moving average whose decay may rise to its value.

    The rise is that of diffusers' EMAModel: (1 + n) / (10 + n) after n updates.
    """

    def update(averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        n = int(updates)
        now = min(decay, (1 + n) / (10 + n)) if warmup else decay
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - now)
        else:  # counts of batches
            torch._foreach_copy_(averages, values)

    return update


def averaged_model(moving: Moving, decay: float, warmup: bool) -> AveragedModel:
    """Return the moving average of these weights and buffers; it starts as their copy."""
    return AveragedModel(moving, multi_avg_fn=_averaging(decay, warmup), use_buffers=True)
