"""Clipped gradients of units: average the losses of a unit, clip its gradient over all trainable weights, sum.

This is DP-SGD (Abadi et al., arXiv 1607.00133) with the rows of a unit as one example: several images of a patient,
several timesteps and noises of an image (noise multiplicity, arXiv 2210.09929). Four modes give the same sums:

| grad_sample_mode | gradients in memory | implementation |
|---|---|---|
| hooks | whole, one per row | Opacus, a formula for each kind of layer |
| functorch | whole, one per row | Opacus, torch.func.vmap of each layer |
| ghost | norms only, then a second backward pass (arXiv 2110.05679) | Opacus, a formula for each kind of layer |
| bookkeeping | one per unit, or norms only, whichever is smaller; one backward pass | `bookkeeping` |

The network is not wrapped, so a loss may call any of its methods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medlt import processes
from medlt.privacy.dpsgd.groups import Engine, Groups, Loss, trainable
from medlt.training.distributed import in_one_message
from medlt.types import GradSampleMode, InputError

GRAD_SAMPLE_MODES = (GradSampleMode.BOOKKEEPING, GradSampleMode.HOOKS, GradSampleMode.GHOST, GradSampleMode.FUNCTORCH)
HOLD_EACH_ROW = (GradSampleMode.HOOKS, GradSampleMode.FUNCTORCH)
BY_FORMULA = (GradSampleMode.HOOKS, GradSampleMode.GHOST)


def recomputes(network: nn.Module) -> bool:
    """Return whether a part of the network recomputes activations in the backward pass (diffusers, transformers)."""
    return any(getattr(part, "gradient_checkpointing", False) for part in network.modules())


def _unlike_zeros(network: nn.Module) -> bool:
    """Return whether a trained convolution pads with other values than zeros, which Opacus' formulas assume."""
    return any(
        getattr(part, "padding_mode", "zeros") != "zeros" and any(weight.requires_grad for weight in part.parameters())
        for part in network.modules()
    )


def _engine(network: nn.Module, mode: GradSampleMode) -> Engine:
    """Return the implementation of a mode. Raises InputError if the network does not allow it."""
    if mode is GradSampleMode.BOOKKEEPING:
        from medlt.privacy.dpsgd.bookkeeping import BookkeepingEngine

        return BookkeepingEngine(network)
    from medlt.privacy.dpsgd.grad_samples import Ghost, Sampled

    if recomputes(network):
        raise InputError(
            f"grad_sample_mode {mode} does not work with gradient_checkpointing; use grad_sample_mode: bookkeeping"
        )
    if mode in BY_FORMULA and _unlike_zeros(network):
        raise InputError(
            f"grad_sample_mode {mode} assumes that convolutions pad with zeros, but one of the network does not; use "
            "grad_sample_mode: bookkeeping or functorch"
        )
    if mode is GradSampleMode.GHOST:
        return Ghost(network)
    return Sampled(network, functorch=mode is GradSampleMode.FUNCTORCH)


class PerUnit:
    """Sums of the clipped gradients of units, float32, kept on each trainable weight as `summed_grad`.

    network: in training mode, on the device of the training; its classes and methods stay unchanged. max_grad_norm:
    largest norm of the gradient of a unit over all trainable weights together; inf for no clipping.
    """

    def __init__(self, network: nn.Module, max_grad_norm: float, mode: GradSampleMode) -> None:
        if mode not in GRAD_SAMPLE_MODES:
            raise ValueError(f"{mode} computes no gradients; choose one of {', '.join(GRAD_SAMPLE_MODES)}")
        self.network, self.max_grad_norm = network, max_grad_norm
        self.weights: dict[str, Any] = dict(trainable(network))
        if not self.weights:
            raise InputError("no weight of the network is trainable; use train: full, or train: lora")
        self.engine = _engine(network, GradSampleMode(mode))
        self.clear()

    def clear(self) -> None:
        """Set all sums to zero."""
        for weight in self.weights.values():
            weight.summed_grad = torch.zeros_like(weight, dtype=torch.float32)

    def _groups(self, groups: Any) -> Groups:
        """Return the groups on the device of the weights. Raises ValueError in evaluation mode."""
        if not self.network.training:
            raise ValueError("the network is in evaluation mode; call train() first")
        return Groups.of(groups, next(iter(self.weights.values())).device)

    def accumulate(self, loss: Loss, groups: Any) -> Tensor:
        """Add the clipped gradients of the units in `groups` [B] to the sums. Return their norms [G] before clipping.

        The rows of a unit are adjacent. Without rows, `loss` is not called. Raises InputError if gradients cannot be
        assigned to units.
        """
        if not len(groups):
            return torch.zeros(0)
        norms, sums = self.engine.clipped(loss, self._groups(groups), self.max_grad_norm)
        for weight, one in zip(self.weights.values(), sums, strict=True):
            weight.summed_grad += one
        return norms

    def reduce(self) -> None:
        """Replace the sums by those over all processes."""
        weights = list(self.weights.values())
        in_one_message([weight.summed_grad for weight in weights], processes.reduce)

    def unit_gradients(self, loss: Loss, groups: Any) -> dict[str, Tensor]:
        """Return the gradient [G,...] of each unit before clipping, by the name of the weight.

        Raises InputError for the mode ghost, which never computes it.
        """
        return dict(zip(self.weights, self.engine.unit_gradients(loss, self._groups(groups)), strict=True))

    def close(self) -> None:
        """Restore the network: remove hooks and sums."""
        self.engine.close()
        for weight in self.weights.values():
            weight.__dict__.pop("summed_grad", None)


def fastest_mode(
    network: nn.Module, loss: Loss, groups: Any, modes: Sequence[GradSampleMode] = GRAD_SAMPLE_MODES
) -> GradSampleMode:
    """Return the fastest of `modes` on this network and this batch, measured now. Modes that do not work are skipped.

    Raises InputError, with the reason of the last mode, if none works.
    """
    best: GradSampleMode | None = None
    fastest, reason = math.inf, InputError("no grad_sample_mode was given; give at least one")
    for mode in modes:
        if mode in HOLD_EACH_ROW and not _fits(network, len(groups)):
            reason = InputError(
                f"grad_sample_mode {mode} needs more memory for {len(groups)} rows; lower max_physical_batch_size"
            )
            continue
        try:
            spent = _timed(network, loss, groups, mode, fastest)
        except InputError as error:
            reason = error
            continue
        best, fastest = (mode, spent) if spent < fastest else (best, fastest)
    if best is None:
        raise reason
    return best


def _fits(network: nn.Module, rows: int) -> bool:
    """Return whether two copies of every trained weight per row fit into half of the free memory."""
    import psutil

    weights = list(trainable(network).values())
    device = weights[0].device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return 2 * 4 * rows * sum(weight.numel() for weight in weights) < free / 2


def _timed(network: nn.Module, loss: Loss, groups: Any, mode: GradSampleMode, bar: float, rounds: int = 2) -> float:
    """Return the seconds of the best of `rounds` after a warm-up. A warm-up of over 4 x `bar` seconds ends it."""
    per_unit = PerUnit(network, 1.0, mode)
    try:
        spent = []
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            float(per_unit.accumulate(loss, groups).sum())
            spent.append(time.perf_counter() - begun)
            if spent[0] > 4 * bar:
                break
        return min(spent[1:] or spent)
    finally:
        per_unit.close()
