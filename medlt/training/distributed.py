"""One step of training in several processes: the gradient and the batch statistics are those of the whole batch.

Each process takes an equal part of every batch. After the backward pass the gradients are averaged, in one message, and
all processes take the same step. DistributedDataParallel is not used: it averages only what `forward` of its wrapper
reaches, and networks here are also called by other methods (docs/decisions/0034-several-processes.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medlt import processes
from medlt.training.checkpoint import State


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; None, which no process has, stays None."""
    if processes.count() < 2:
        return
    present = torch.tensor([float(weight.grad is not None) for weight in parameters], device=parameters[0].device)
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
    in_one_message([present, *gradients], partial(processes.reduce, mean=True))
    for weight, gradient, some in zip(parameters, gradients, present.tolist(), strict=True):
        weight.grad = gradient if some else None


def in_one_message(tensors: Sequence[Tensor], send: Callable[[Tensor], Tensor]) -> None:
    """Replace tensors of one type, in place, by what `send` makes of all their numbers in a row."""
    if processes.count() > 1:
        whole = send(torch.cat([one.flatten() for one in tensors]))
        for one, received in zip(tensors, torch.split(whole, [one.numel() for one in tensors]), strict=True):
            one.copy_(received.view_as(one))


def spread_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give all processes the gradients of the first one, which has one for each weight."""
    for weight in parameters:
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    in_one_message([weight.grad for weight in parameters if weight.grad is not None], processes.spread)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, and of its gradient."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total: Tensor = processes.reduce(values.detach().clone())
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total: Tensor = processes.reduce(gradients[0].contiguous().clone())
        return total


def _total(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


def _normalised(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Return the output of a batch norm, in training with mean and variance over the batch of all processes."""
    if not layer.training:
        plain: Tensor = type(layer).forward(layer, x)
        return plain
    rows, over = x.float(), [0, *range(2, x.ndim)]
    number = processes.count() * x.numel() // x.shape[1]
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean = _total(rows.sum(over)) / number
    centred = rows - mean.reshape(shape)
    variance = _total(centred.square().sum(over)) / number
    _track(layer, mean.detach(), variance.detach() * number / max(1, number - 1))
    out = centred * (variance + layer.eps).rsqrt().reshape(shape)
    if layer.affine:
        out = out * layer.weight.reshape(shape) + layer.bias.reshape(shape)
    return out.to(x.dtype)


def _track(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as torch does."""
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    share = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean), share)
    layer.running_var.lerp_(variance.to(layer.running_var), share)


@contextmanager
def whole_batch_norms(network: nn.Module) -> Iterator[None]:
    """Let the batch norms of the network see the batch of all processes inside the block.

    torch's own SyncBatchNorm works on GPUs only.
    """
    layers: list[Any] = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    layers = layers if processes.count() > 1 else []
    for layer in layers:
        layer.forward = MethodType(_normalised, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def share(state: State) -> None:
    """Give all processes the state of the first one: that of its checkpoint, or the first weights."""
    if processes.count() < 2:
        return
    from safetensors import torch as safetensors

    def tensors() -> bytes:
        named = {name: value.detach().cpu().contiguous() for name, value in state.tensors().items()}
        content: bytes = safetensors.save(named)
        return content

    header: dict[str, Any] = processes.value(lambda: {"step": state.step, "metadata": state.metadata})
    named = processes.content(tensors)
    if not processes.first():
        state.restore(safetensors.load(named), header["step"])
        state.metadata = header["metadata"]
