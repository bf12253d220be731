"""One clipped gradient a unit: its rows' losses averaged, its gradient over all trainable weights bounded, then summed.

DP-SGD (Abadi et al., arXiv 1607.00133) with the rows of a unit as one example: several images of a patient, several
timesteps and noises of an image (noise multiplicity, arXiv 2210.09929). Four ways give the same sums:

| way | gradients a unit | by |
|---|---|---|
| hooks | held whole, one a row | Opacus, a formula a layer |
| functorch | held whole, one a row | Opacus, torch.func.vmap a layer |
| ghost | norms only, then a second backward pass (arXiv 2110.05679) | Opacus, formulas a layer |
| book | held a unit, or norms only, whichever is smaller; one backward pass | `medlt.privacy.dpsgd.bookkeeping` |

Nothing wraps the network, so a loss may call any of its methods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medlt.privacy.dpsgd.groups import Engine, Groups, Loss, trainable
from medlt.types import GradSampleMode, InputError

WAYS = (GradSampleMode.BOOKKEEPING, GradSampleMode.HOOKS, GradSampleMode.GHOST, GradSampleMode.FUNCTORCH)
HOLD_EACH_ROW = (GradSampleMode.HOOKS, GradSampleMode.FUNCTORCH)
BY_FORMULA = (GradSampleMode.HOOKS, GradSampleMode.GHOST)


def recomputes(network: nn.Module) -> bool:
    """Return whether a part of the network recomputes activations in the backward pass (diffusers, transformers)."""
    return any(getattr(part, "gradient_checkpointing", False) for part in network.modules())


def _unlike_zeros(network: nn.Module) -> bool:
    """Return whether a trained convolution pads with something else than zeros, which Opacus' formulas take for zeros."""
    return any(
        getattr(part, "padding_mode", "zeros") != "zeros" and any(weight.requires_grad for weight in part.parameters())
        for part in network.modules()
    )


def _engine(network: nn.Module, way: GradSampleMode) -> Engine:
    if way is GradSampleMode.BOOKKEEPING:
        from medlt.privacy.dpsgd.bookkeeping import BookkeepingEngine

        return BookkeepingEngine(network)
    from medlt.privacy.dpsgd.grad_samples import Ghost, Sampled

    if recomputes(network):
        raise InputError(f"gradients by {way} cannot be taken where activations are recomputed; choose bookkeeping")
    if way in BY_FORMULA and _unlike_zeros(network):
        raise InputError(f"gradients by {way} take a convolution's padding for zeros; choose bookkeeping or functorch")
    if way is GradSampleMode.GHOST:
        return Ghost(network)
    return Sampled(network, functorch=way is GradSampleMode.FUNCTORCH)


class PerUnit:
    """Clipped sums of units' gradients, in float32, on each trainable weight as `summed_grad`.

    network: in training mode, its weights where they are trained; its classes and methods stay as they are. clip: the
    largest norm a unit's gradient keeps, over all trainable weights together; inf is off.
    """

    def __init__(self, network: nn.Module, clip: float, way: GradSampleMode) -> None:
        if way not in WAYS:
            raise ValueError(f"{way} takes no gradients; choose one of {', '.join(WAYS)}")
        self.network, self.clip = network, clip
        self.weights: dict[str, Any] = dict(trainable(network))
        if not self.weights:
            raise InputError("no weight of the network is trainable; choose full training, or LoRA layers")
        self.engine = _engine(network, GradSampleMode(way))
        self.clear()

    def clear(self) -> None:
        """Return sums of no unit: zeros."""
        for weight in self.weights.values():
            weight.summed_grad = torch.zeros_like(weight, dtype=torch.float32)

    def _groups(self, groups: Any) -> Groups:
        if not self.network.training:
            raise ValueError("the network is in evaluation mode; call train() first")
        return Groups.of(groups, next(iter(self.weights.values())).device)

    def accumulate(self, loss: Loss, groups: Any) -> Tensor:
        """Add the clipped gradients of the units in `groups` [B] (rows of one beside each other); norms [G] before.

        `loss` is not called where there is no row. Raises InputError where gradients cannot be told apart by unit.
        """
        if not len(groups):
            return torch.zeros(0)
        norms, sums = self.engine.clipped(loss, self._groups(groups), self.clip)
        for weight, one in zip(self.weights.values(), sums, strict=True):
            weight.summed_grad += one
        return norms

    def unit_gradients(self, loss: Loss, groups: Any) -> dict[str, Tensor]:
        """Return each unit's gradient [G,...] before clipping, by weight.

        Raises InputError for ghost, which never has it.
        """
        return dict(zip(self.weights, self.engine.apart(loss, self._groups(groups)), strict=True))

    def close(self) -> None:
        """Leave the network as it was, without hooks and sums."""
        self.engine.close()
        for weight in self.weights.values():
            weight.__dict__.pop("summed_grad", None)


def measured(network: nn.Module, loss: Loss, groups: Any, ways: Sequence[GradSampleMode] = WAYS) -> GradSampleMode:
    """Return the fastest of `ways` on this network and this batch, here and now; one that cannot do it is passed over.

    Raises InputError, the last way's reason, where none can.
    """
    best: GradSampleMode | None = None
    fastest, reason = math.inf, InputError("no way was given to take gradients by")
    for way in ways:
        if way in HOLD_EACH_ROW and not _fits(network, len(groups)):
            reason = InputError(f"{way} would hold {len(groups)} gradients of all weights, for which memory is short")
            continue
        try:
            spent = _timed(network, loss, groups, way, fastest)
        except InputError as error:
            reason = error
            continue
        best, fastest = (way, spent) if spent < fastest else (best, fastest)
    if best is None:
        raise reason
    return best


def _fits(network: nn.Module, rows: int) -> bool:
    """Return whether two copies of every trained weight a row go into half of the memory that is free."""
    import psutil

    weights = list(trainable(network).values())
    device = weights[0].device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return 2 * 4 * rows * sum(weight.numel() for weight in weights) < free / 2


def _timed(network: nn.Module, loss: Loss, groups: Any, way: GradSampleMode, bar: float, rounds: int = 2) -> float:
    """Return seconds of the best of `rounds` after a first that is not counted; no more rounds where that is far over."""
    per_unit = PerUnit(network, 1.0, way)
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
