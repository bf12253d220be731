"""The exponential moving average of trained weights, by torch's AveragedModel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Moving(nn.Module):
    """The trained weights and the buffers of a network, of which a moving average is taken."""

    def __init__(self, network: nn.Module, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters)
        for number, buffer in enumerate(network.buffers()):
            self.register_buffer(f"buffer_{number}", buffer)

    def tensors(self) -> list[Tensor]:
        """Return the weights, then the buffers."""
        return [*self.parameters(), *self.buffers()]


def _averaging(decay: float, warmup: bool) -> Callable[[Any, Any, Any], None]:
    """Return the update function of torch's AveragedModel for an exponential moving average.

    With `warmup` the decay is at most (1 + n) / (10 + n) after n updates, as in diffusers' EMAModel.
    """

    def update(averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        n = int(updates)
        current = min(decay, (1 + n) / (10 + n)) if warmup else decay
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - current)
        else:  # batch counters
            torch._foreach_copy_(averages, values)

    return update


def averaged_model(moving: Moving, decay: float, warmup: bool) -> AveragedModel:
    """Return the moving average of these weights and buffers. It starts as a copy of them."""
    return AveragedModel(moving, multi_avg_fn=_averaging(decay, warmup), use_buffers=True)
