"""Clipped sums of units' gradients from one backward pass that takes no gradient of the weights ("book-keeping").

After Bu et al. (arXiv 2210.00038), with the rows of a unit as one longer sequence. The backward pass hands each layer
its input a and what comes back b; of these a unit's gradient is kept where that is little, and otherwise only its norm
is taken, from Gram matrices (arXiv 2110.05679), and the clipped sum by one ordinary gradient with b scaled.

| symbol | meaning |
|---|---|
| B, G, m | rows, units, rows of the largest unit |
| a, b | a layer's input [B,T,d] and the loss's gradient of its output [B,T,p]; a convolution's input unfolded |
| c | clipping coefficients [G] |
| g | gradients of a unit [G,p,d] = sum over its rows and T of b a^T |

Norm layers and weights that stand alone are spread to one copy a row, of which autograd gives the gradient as it is.
Layers not known here run under torch.func.vmap, a weight a row. Tied weights and layers used several times add up;
recomputed activations are what they were. What a layer computes forward is what it computed before, to rounding.
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
    """What one backward pass left: gradients a unit by weight, and uses whose norm is still to be taken."""

    groups: Groups
    held: dict[int, Tensor] = field(default_factory=dict)
    later: dict[int, list[Entry]] = field(default_factory=dict)

    def add(self, weight: Tensor, gradients: Tensor) -> None:
        """Of float32 [G, *weight]."""
        known = self.held.get(id(weight))
        self.held[id(weight)] = gradients if known is None else known.add_(gradients)

    def use(self, layer: Any, a: Tensor, b: Tensor) -> None:
        """Return a heavy layer's input and backprop."""
        check_rows(len(b), self.groups)
        if layer.weight.requires_grad:
            entry = Entry(layer, a.detach(), b.detach())
            if entry.ghostly(self.groups):
                self.later.setdefault(id(layer.weight), []).append(entry)
            else:
                self.add(layer.weight, entry.gradients(self.groups))

    def row(self, weight: Tensor, gradients: Tensor) -> None:
        """Of one a row [B, *weight]."""
        check_rows(len(gradients), self.groups)
        self.add(weight, self.groups.total(gradients))

    def settle(self, everything: bool = False) -> None:
        """Hold the gradients of weights with several uses, whose norms do not add; or of all."""
        for number in [n for n, uses in self.later.items() if everything or len(uses) > 1 or n in self.held]:
            for entry in self.later.pop(number):
                self.add(entry.layer.weight, entry.gradients(self.groups))

    def squares(self) -> Tensor:
        """Return squared norms [G] over all weights."""
        total = torch.zeros(len(self.groups.sizes), device=self.groups.unit.device)
        for one in self.held.values():
            total += torch.linalg.vector_norm(one.flatten(1), dim=1).square()
        for (entry,) in self.later.values():
            total += entry.squares(self.groups)
        return total

    def sum(self, weight: Tensor, keep: Tensor) -> Tensor:
        """Sum over units of c g for one weight; zeros where the loss does not reach it."""
        if id(weight) in self.held:
            return (keep @ self.held[id(weight)].flatten(1)).reshape(weight.shape)
        if id(weight) in self.later:
            return self.later[id(weight)][0].scaled(self.groups, keep).reshape(weight.shape)
        return torch.zeros_like(weight, dtype=torch.float32)


class _Use(torch.autograd.Function):
    """A layer whose weights get no gradient, but whose book does."""

    @staticmethod
    def forward(
        ctx: Any, book: BookkeepingEngine, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
            x = x.to(torch.get_autocast_dtype(x.device.type))
        ctx.book, ctx.layer = book, layer
        ctx.save_for_backward(x, weight)
        return output(layer, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *backprops: Tensor) -> Any:
        (b,), (x, weight), layer = backprops, ctx.saved_tensors, ctx.layer
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            b = b.masked_fill((x == layer.padding_idx)[..., None], 0.0)
        ctx.book.step.use(layer, x, b)
        bias = getattr(layer, "bias", None)
        if bias is not None and bias.requires_grad:
            ctx.book.step.row(bias, bias_gradient(layer, b))
        return None, None, input_gradient(layer, x, weight, b) if ctx.needs_input_grad[2] else None, None, None


class _Spread(torch.autograd.Function):
    """A weight as one copy a row [B, *weight]; the gradient a row goes to the book."""

    @staticmethod
    def forward(ctx: Any, book: BookkeepingEngine, weight: Tensor, rows: int) -> Tensor:
        ctx.book, ctx.weight = book, weight
        return weight.expand(rows, *weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.book.step.row(ctx.weight, gradients[0])
        return None, None, None


class BookkeepingEngine:
    """GradSampleMode.BOOKKEEPING of `medlt.privacy.dpsgd.gradients`."""

    step: Step

    def __init__(self, network: nn.Module) -> None:
        self.weights = list(trainable(network).values())
        self.before: list[tuple[Any, Any]] = []
        self._attach(network)

    def _attach(self, part: nn.Module) -> None:
        """Give each layer with trained weights of its own a forward that keeps the book; undone by `close`."""
        if any(weight.requires_grad for weight in part.parameters(recurse=False)):
            self.before.append((part, part.__dict__.get("forward")))
            part.forward = partial(_forward(part), self, part)
            return
        for child in part.children():
            self._attach(child)

    def spread(self, weight: Tensor | None, rows: int) -> Tensor | None:
        """Return a weight as one copy a row; what is not trained, or not there, as it is."""
        if weight is None:
            return None
        return _Spread.apply(self, weight, rows) if weight.requires_grad else weight.expand(rows, *weight.shape)  # type: ignore[no-untyped-call]

    def _backward(self, loss: Loss, groups: Groups) -> Step:
        self.step = Step(groups)
        try:
            total: Any = groups.mean(loss())
            total.backward()
            self._assert_booked()
            return self.step
        finally:
            del self.step

    def _assert_booked(self) -> None:
        """Raise InputError for a weight that got a gradient beside the book: of all rows at once, for no unit."""
        beside = sum(weight.grad is not None for weight in self.weights)
        for weight in self.weights:
            weight.grad = None
        if beside:
            raise InputError(
                f"{beside} trainable weights are used outside of the layer that owns them, where gradients cannot be "
                "told apart by unit; freeze them, use them through their layer, or choose another way than bookkeeping"
            )

    def apart(self, loss: Loss, groups: Groups) -> list[Tensor]:
        step = self._backward(loss, groups)
        with torch.no_grad():
            step.settle(everything=True)
        none = [len(groups.sizes)]
        return [step.held.get(id(w), torch.zeros(none + list(w.shape), device=w.device)) for w in self.weights]

    def clipped(self, loss: Loss, groups: Groups, clip: float) -> tuple[Tensor, list[Tensor]]:
        step = self._backward(loss, groups)
        with torch.no_grad():
            step.settle()
            norms = step.squares().sqrt()
            keep = coefficients(norms, clip)
            return norms, [step.sum(weight, keep) for weight in self.weights]

    def close(self) -> None:
        for part, before in self.before:
            _restore(part, before)
        self.before = []

    def own(self, part: Any) -> Any:
        """Return the forward that a part had of its own before, if any."""
        return next(before for patched, before in self.before if patched is part)


def _restore(part: Any, before: Any) -> None:
    part.__dict__.pop("forward", None)
    if before is not None:
        part.forward = before


def _forward(part: nn.Module) -> Callable[..., Tensor]:
    if type(part) is nn.Linear or type(part) is nn.Conv2d:
        return _heavy
    if type(part) is nn.Embedding and part.max_norm is None and not part.scale_grad_by_freq:
        return _heavy
    if type(part) is nn.GroupNorm:
        return _group_norm
    return _layer_norm if type(part) is nn.LayerNorm else _any


def _heavy(book: BookkeepingEngine, layer: Any, x: Tensor) -> Tensor:
    y: Tensor = _Use.apply(book, layer, padded(layer, x), layer.weight, getattr(layer, "bias", None))  # type: ignore[no-untyped-call]
    return y


def _group_norm(book: BookkeepingEngine, layer: Any, x: Tensor) -> Tensor:
    """Return rows and channels as channels of one image: its weight's gradient is then one a row."""
    rows, channels = x.shape[:2]
    weight, bias = book.spread(layer.weight, rows), book.spread(layer.bias, rows)
    if x.is_contiguous() and weight is not None and bias is not None:
        one = x.reshape(1, rows * channels, *x.shape[2:])
        told = weight.reshape(-1), bias.reshape(-1)
        return F.group_norm(one, rows * layer.num_groups, *told, layer.eps).reshape(x.shape)
    y = F.group_norm(x, layer.num_groups, None, None, layer.eps)
    return _affine(y, weight, bias, (rows, channels, *[1] * (x.ndim - 2)))


def _layer_norm(book: BookkeepingEngine, layer: Any, x: Tensor) -> Tensor:
    rows, shape = len(x), layer.normalized_shape
    y = F.layer_norm(x, shape, None, None, layer.eps)
    between = [1] * (x.ndim - 1 - len(shape))
    weight, bias = book.spread(layer.weight, rows), book.spread(layer.bias, rows)
    return _affine(y, weight, bias, (rows, *between, *shape))


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if weight is None:
        return y
    weight = weight.reshape(shape).to(y.dtype)
    return y * weight if bias is None else torch.addcmul(bias.reshape(shape).to(y.dtype), y, weight)


def _any(book: BookkeepingEngine, layer: Any, *inputs: Any, **named: Any) -> Any:
    """Return a layer not known here, a row at a time with weights of its own, under vmap; tensors may be told by name
    too.
    """
    rows = len(next(x for x in (*inputs, *named.values()) if isinstance(x, Tensor)))
    weights = {name: book.spread(weight, rows) for name, weight in layer.named_parameters()}
    told = {name: x for name, x in named.items() if isinstance(x, Tensor)}
    fixed = {name: x for name, x in named.items() if name not in told}

    def one(own: Any, told: dict[str, Tensor], *row: Tensor) -> Any:
        alone = {name: x[None] for name, x in told.items()}
        answer = torch.func.functional_call(layer, own, tuple(x[None] for x in row), fixed | alone)
        return tree_map(lambda y: y[0], answer)

    keeps = layer.forward
    _restore(layer, book.own(layer))
    try:
        with sdpa_kernel(SDPBackend.MATH):  # vmap loops over rows, with a warning, in the faster kernels
            return torch.func.vmap(one, randomness="different")(weights, told, *inputs)
    finally:
        layer.forward = keeps
