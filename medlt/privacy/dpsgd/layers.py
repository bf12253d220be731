"""Gradients of units for layers whose weight is a matrix: linear, convolution, embedding.

The notation is that of `medlt.privacy.dpsgd.bookkeeping`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.privacy.dpsgd.groups import Groups

GRAM = 60
"""The gradient of a unit has p d numbers, written once and read twice; its norm by Gram matrices takes T^2 (p + d)
products. On a CPU, about this many products take as long as one number. It changes the speed alone, not the result."""


@dataclass(frozen=True)
class Entry:
    """One use of a layer in a step: its input a and the gradient b of its output, in the shapes of the layer."""

    layer: Any
    a: Tensor
    b: Tensor

    def ghostly(self, groups: Groups) -> bool:
        """Return whether norms from Gram matrices are cheaper than gradients of units."""
        if isinstance(self.layer, nn.Embedding):
            return True
        if getattr(self.layer, "groups", 1) > 1:
            return False
        p, d = len(self.layer.weight), self.layer.weight[0].numel()
        length = self.b.numel() // (len(self.b) * p) * groups.most
        return bool(length**2 * (p + d) <= GRAM * p * d)

    def sequences(self) -> tuple[Tensor, Tensor]:
        """Return a [B,T,d] and b [B,T,p]; for a convolution, a is unfolded."""
        if not isinstance(self.layer, nn.Conv2d):
            return self.a.flatten(1, -2) if self.a.ndim > 2 else self.a[:, None], _tokens(self.b)
        if pointwise(self.layer):
            return _pixels(self.a), _pixels(self.b)
        geometry = self.layer.kernel_size, self.layer.dilation, padding(self.layer), self.layer.stride
        return F.unfold(self.a, *geometry).mT, _pixels(self.b)

    def squares(self, groups: Groups) -> Tensor:
        """Return the squared norm float32 [G] of the gradient of each unit: the sum of (a a^T) (b b^T) over entries."""
        if isinstance(self.layer, nn.Embedding):
            tokens = groups.by_unit(self.a.reshape(len(self.a), -1))
            alike, b = (tokens[:, :, None] == tokens[:, None, :]).float(), _tokens(self.b)
        else:
            a, b = self.sequences()
            a = groups.by_unit(a).float()
            alike = a @ a.mT
        b = groups.by_unit(b).float()
        return ((b @ b.mT) * alike).sum((1, 2)).clamp_min(0.0)

    def gradients(self, groups: Groups) -> Tensor:
        """Return the gradient float32 [G, *weight] of each unit."""
        if isinstance(self.layer, nn.Embedding):
            return self._of_tokens(groups)
        if isinstance(self.layer, nn.Conv2d) and self._one_by_one():
            sizes = groups.sizes.tolist()
            pieces = zip(torch.split(self.a, sizes), torch.split(self.b, sizes), strict=True)
            return torch.stack([_weight_gradient(self.layer, a, b) for a, b in pieces])
        a, b = self.sequences()
        products = torch.bmm(groups.by_unit(b).mT, groups.by_unit(a))
        return products.float().reshape(len(groups.sizes), *self.layer.weight.shape)

    def _one_by_one(self) -> bool:
        """Return whether to compute each unit by itself: convolutions on a CPU, where matrix products are slower."""
        return self.layer.groups > 1 or (self.a.device.type == "cpu" and not pointwise(self.layer))

    def _of_tokens(self, groups: Groups) -> Tensor:
        """Return the gradients [G, tokens, width] of an embedding."""
        tokens, width = self.layer.weight.shape
        at = groups.unit.reshape(-1, *[1] * (self.a.ndim - 1)) * tokens + self.a
        sums = torch.zeros(len(groups.sizes) * tokens, width, device=self.b.device)
        sums.index_add_(0, at.flatten(), self.b.float().reshape(-1, width))
        return sums.reshape(-1, tokens, width)

    def scaled(self, groups: Groups, keep: Tensor) -> Tensor:
        """Return the sum over units of c g, float32 like the norms, in the shape of the weight."""
        b = self.b.float() * keep[groups.unit].reshape(-1, *[1] * (self.b.ndim - 1))
        if isinstance(self.layer, nn.Conv2d):
            return _weight_gradient(self.layer, self.a.float(), b)
        b = b.flatten(0, -2)
        if isinstance(self.layer, nn.Embedding):
            return torch.zeros_like(self.layer.weight, dtype=torch.float32).index_add_(0, self.a.flatten(), b)
        return b.mT @ self.a.float().flatten(0, -2)


def _tokens(b: Tensor) -> Tensor:
    """Return [B,p] or [B,...,p] as [B,T,p]."""
    return b.flatten(1, -2) if b.ndim > 2 else b[:, None]


def _pixels(images: Tensor) -> Tensor:
    """Return [B,C,h,w] as [B,hw,C], without a copy if it is channels last."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def pointwise(layer: nn.Conv2d) -> bool:
    """Return whether a convolution is a linear layer on each pixel."""
    return (layer.kernel_size, layer.stride, layer.groups, padding(layer)) == ((1, 1), (1, 1), 1, (0, 0))


def padding(layer: nn.Conv2d) -> tuple[int, ...]:
    """Return the padding of the convolution itself: 0 if `padded` adds it."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return (0, 0)
    return tuple(layer.padding)


def padded(layer: Any, x: Tensor) -> Tensor:
    """Return x with the border that a convolution cannot add itself: reflected, repeated or uneven."""
    if not isinstance(layer, nn.Conv2d) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str)):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


def output(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of the layer for `padded` x."""
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight, layer.padding_idx)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, padding(layer), layer.dilation, layer.groups)


def input_gradient(layer: Any, x: Tensor, weight: Tensor, b: Tensor) -> Tensor:
    """Return the gradient of the loss by x, from that by the output."""
    weight = weight.to(b.dtype)
    gradient: Tensor = b @ weight if isinstance(layer, nn.Linear) else _of_convolution(layer, b, x, weight, 0)
    return gradient


def bias_gradient(layer: Any, b: Tensor) -> Tensor:
    """Return the gradient of the bias for each row, float32 [B,p]."""
    over = (2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(1, b.ndim - 1))
    return b.sum(over, dtype=torch.float32) if over else b.float()


def _of_convolution(layer: Any, b: Tensor, a: Tensor, weight: Tensor, which: int) -> Tensor:
    """Return the gradient of the input (`which` = 0) or of the weight (1) of a convolution."""
    geometry = [0], layer.stride, padding(layer), layer.dilation, False, [0, 0], layer.groups
    wanted = [which == 0, which == 1, False]
    gradient: Tensor = torch.ops.aten.convolution_backward(b, a, weight, *geometry, wanted)[which]
    return gradient


def _weight_gradient(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    return _of_convolution(layer, b, a, layer.weight.detach().to(b.dtype), 1).float()
