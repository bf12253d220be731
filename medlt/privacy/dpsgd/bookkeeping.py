"""Clipped sums of the gradients of units from one backward pass without gradients of the weights ("engine-keeping").

After Bu et al. (arXiv 2210.00038), with the rows of a unit as one longer sequence. The backward pass gives each layer
its input a and the gradient b of its output. If the gradient of a unit is small, it is computed from these and kept.
Otherwise only its norm is computed, from Gram matrices (arXiv 2110.05679), and the clipped sum by one ordinary gradient
with b scaled.

| symbol | meaning |
|---|---|
| B, G, m | rows, units, rows of the largest unit |
| a, b | input of a layer [B,T,d] and gradient of the loss by its output [B,T,p]; for a convolution, a is unfolded |
| c | clipping coefficients [G] |
| g | gradients of units [G,p,d] = sum over the rows of a unit and T of b a^T |

Norm layers and single weights are expanded to one copy per row, whose gradient autograd computes. Unknown layers run
under torch.func.vmap with one copy of their weights per row. Tied weights and layers that are used several times are
summed. Recomputed activations are supported. The forward pass stays the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from medlt.privacy.dpsgd.groups import Groups, Loss, check_rows, coefficients, trainable
from medlt.privacy.dpsgd.layers import Entry, bias_gradient, input_gradient, output, padded
from medlt.types import InputError


@dataclass
class Step:
    """Results of one backward pass: gradients of units by weight, and layer uses without a norm yet."""

    groups: Groups
    held: dict[int, Tensor] = field(default_factory=dict)
    later: dict[int, list[Entry]] = field(default_factory=dict)

    def add(self, weight: Tensor, gradients: Tensor) -> None:
        """Add gradients of units, float32 [G, *weight], of one weight."""
        known = self.held.get(id(weight))
        self.held[id(weight)] = gradients if known is None else known.add_(gradients)

    def use(self, layer: Any, a: Tensor, b: Tensor) -> None:
        """Record the input a and the output gradient b of a layer whose weight is a matrix."""
        check_rows(len(b), self.groups)
        if layer.weight.requires_grad:
            entry = Entry(layer, a.detach(), b.detach())
            if entry.ghostly(self.groups):
                self.later.setdefault(id(layer.weight), []).append(entry)
            else:
                self.add(layer.weight, entry.gradients(self.groups))

    def row(self, weight: Tensor, gradients: Tensor) -> None:
        """Add gradients of rows [B, *weight] of one weight."""
        check_rows(len(gradients), self.groups)
        self.add(weight, self.groups.total(gradients))

    def settle(self, everything: bool = False) -> None:
        """Compute the gradients of weights with several uses, whose norms cannot be added, or of all weights."""
        for number in [n for n, uses in self.later.items() if everything or len(uses) > 1 or n in self.held]:
            for entry in self.later.pop(number):
                self.add(entry.layer.weight, entry.gradients(self.groups))

    def squares(self) -> Tensor:
        """Return the squared norms [G] over all weights."""
        total = torch.zeros(len(self.groups.sizes), device=self.groups.unit.device)
        for one in self.held.values():
            total += torch.linalg.vector_norm(one.flatten(1), dim=1).square()
        for (entry,) in self.later.values():
            total += entry.squares(self.groups)
        return total

    def sum(self, weight: Tensor, keep: Tensor) -> Tensor:
        """Return the sum over units of c g for one weight; zeros if the loss does not reach it."""
        if id(weight) in self.held:
            return (keep @ self.held[id(weight)].flatten(1)).reshape(weight.shape)
        if id(weight) in self.later:
            return self.later[id(weight)][0].scaled(self.groups, keep).reshape(weight.shape)
        return torch.zeros_like(weight, dtype=torch.float32)


class _Use(torch.autograd.Function):
    """A layer whose input and output gradient are recorded in place of a gradient of its weights."""

    @staticmethod
    def forward(
        ctx: Any, engine: BookkeepingEngine, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
            x = x.to(torch.get_autocast_dtype(x.device.type))
        ctx.engine, ctx.layer = engine, layer
        ctx.save_for_backward(x, weight)
        return output(layer, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *backprops: Tensor) -> Any:
        (b,), (x, weight), layer = backprops, ctx.saved_tensors, ctx.layer
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            b = b.masked_fill((x == layer.padding_idx)[..., None], 0.0)
        ctx.engine.step.use(layer, x, b)
        bias = getattr(layer, "bias", None)
        if bias is not None and bias.requires_grad:
            ctx.engine.step.row(bias, bias_gradient(layer, b))
        return None, None, input_gradient(layer, x, weight, b) if ctx.needs_input_grad[2] else None, None, None


class _Spread(torch.autograd.Function):
    """A weight expanded to one copy per row [B, *weight]; the gradients of the copies are recorded."""

    @staticmethod
    def forward(ctx: Any, engine: BookkeepingEngine, weight: Tensor, rows: int) -> Tensor:
        ctx.engine, ctx.weight = engine, weight
        return weight.expand(rows, *weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.engine.step.row(ctx.weight, gradients[0])
        return None, None, None


class BookkeepingEngine:
    """The mode GradSampleMode.BOOKKEEPING of `medlt.privacy.dpsgd.gradients`."""

    step: Step

    def __init__(self, network: nn.Module) -> None:
        self.weights = list(trainable(network).values())
        self.before: list[tuple[Any, Any]] = []
        self._attach(network)

    def _attach(self, part: nn.Module) -> None:
        """Replace the forward of each layer with trained weights by one that records; `close` undoes it."""
        if any(weight.requires_grad for weight in part.parameters(recurse=False)):
            self.before.append((part, part.__dict__.get("forward")))
            part.forward = partial(_forward(part), self, part)
            return
        for child in part.children():
            self._attach(child)

    def spread(self, weight: Tensor | None, rows: int) -> Tensor | None:
        """Return a weight expanded to one copy per row; None for None."""
        if weight is None:
            return None
        return _Spread.apply(self, weight, rows) if weight.requires_grad else weight.expand(rows, *weight.shape)  # type: ignore[no-untyped-call]

    def _backward(self, loss: Loss, groups: Groups) -> Step:
        """Run the backward pass and return what it recorded."""
        self.step = Step(groups)
        try:
            total: Any = groups.mean(loss())
            total.backward()
            self._assert_booked()
            return self.step
        finally:
            del self.step

    def _assert_booked(self) -> None:
        """Raise InputError for a weight with an ordinary gradient, which cannot be assigned to units."""
        beside = sum(weight.grad is not None for weight in self.weights)
        for weight in self.weights:
            weight.grad = None
        if beside:
            raise InputError(
                f"{beside} trainable weights are used outside of the layer that owns them, where gradients cannot be "
                "assigned to units; freeze them, use them through their layer, or use grad_sample_mode: functorch"
            )

    def unit_gradients(self, loss: Loss, groups: Groups) -> list[Tensor]:
        step = self._backward(loss, groups)
        with torch.no_grad():
            step.settle(everything=True)
        none = [len(groups.sizes)]
        return [step.held.get(id(w), torch.zeros(none + list(w.shape), device=w.device)) for w in self.weights]

    def clipped(self, loss: Loss, groups: Groups, max_grad_norm: float) -> tuple[Tensor, list[Tensor]]:
        step = self._backward(loss, groups)
        with torch.no_grad():
            step.settle()
            norms = step.squares().sqrt()
            keep = coefficients(norms, max_grad_norm)
            return norms, [step.sum(weight, keep) for weight in self.weights]

    def close(self) -> None:
        for part, before in self.before:
            _restore(part, before)
        self.before = []

    def original_forward(self, part: Any) -> Any:
        """Return the forward that was set on this part before, or None."""
        return next(before for patched, before in self.before if patched is part)


def _restore(part: Any, before: Any) -> None:
    part.__dict__.pop("forward", None)
    if before is not None:
        part.forward = before


def _forward(part: nn.Module) -> Callable[..., Tensor]:
    """Return the recording forward for this kind of layer."""
    if type(part) is nn.Linear or type(part) is nn.Conv2d:
        return _matrix_layer
    if type(part) is nn.Embedding and part.max_norm is None and not part.scale_grad_by_freq:
        return _matrix_layer
    if type(part) is nn.GroupNorm:
        return _group_norm
    return _layer_norm if type(part) is nn.LayerNorm else _any


def _matrix_layer(engine: BookkeepingEngine, layer: Any, x: Tensor) -> Tensor:
    """Return the output of a linear layer, convolution or embedding."""
    y: Tensor = _Use.apply(engine, layer, padded(layer, x), layer.weight, getattr(layer, "bias", None))  # type: ignore[no-untyped-call]
    return y


def _group_norm(engine: BookkeepingEngine, layer: Any, x: Tensor) -> Tensor:
    """Return the output of a group norm with rows and channels as channels of one image: one weight per row."""
    rows, channels = x.shape[:2]
    weight, bias = engine.spread(layer.weight, rows), engine.spread(layer.bias, rows)
    if x.is_contiguous() and weight is not None and bias is not None:
        one = x.reshape(1, rows * channels, *x.shape[2:])
        gain = weight.reshape(-1), bias.reshape(-1)
        return F.group_norm(one, rows * layer.num_groups, *gain, layer.eps).reshape(x.shape)
    y = F.group_norm(x, layer.num_groups, None, None, layer.eps)
    return _affine(y, weight, bias, (rows, channels, *[1] * (x.ndim - 2)))


def _layer_norm(engine: BookkeepingEngine, layer: Any, x: Tensor) -> Tensor:
    rows, shape = len(x), layer.normalized_shape
    y = F.layer_norm(x, shape, None, None, layer.eps)
    between = [1] * (x.ndim - 1 - len(shape))
    weight, bias = engine.spread(layer.weight, rows), engine.spread(layer.bias, rows)
    return _affine(y, weight, bias, (rows, *between, *shape))


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if weight is None:
        return y
    weight = weight.reshape(shape).to(y.dtype)
    return y * weight if bias is None else torch.addcmul(bias.reshape(shape).to(y.dtype), y, weight)


def _any(engine: BookkeepingEngine, layer: Any, *inputs: Any, **named: Any) -> Any:
    """Return the output of an unknown layer, computed for each row with its own copy of the weights under vmap."""
    rows = len(next(x for x in (*inputs, *named.values()) if isinstance(x, Tensor)))
    weights = {name: engine.spread(weight, rows) for name, weight in layer.named_parameters()}
    tensors = {name: x for name, x in named.items() if isinstance(x, Tensor)}
    fixed = {name: x for name, x in named.items() if name not in tensors}

    def one(own: Any, tensors: dict[str, Tensor], *row: Tensor) -> Any:
        alone = {name: x[None] for name, x in tensors.items()}
        y = torch.func.functional_call(layer, own, tuple(x[None] for x in row), fixed | alone)
        return tree_map(lambda part: part[0], y)

    keeps = layer.forward
    _restore(layer, engine.original_forward(layer))
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the faster kernels make vmap loop over rows, with a warning
            return torch.func.vmap(one, randomness="different")(weights, tensors, *inputs)
    finally:
        layer.forward = keeps
