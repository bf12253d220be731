"""Gradients of units for layers whose weight is a matrix: linear, convolution, embedding. Notation: see `book`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.privacy.dpsgd.groups import Groups

GRAM = 60
"""A unit's gradient is p d numbers, written once and read twice; its norm by Gram matrices takes T^2 (p + d) products.
So many products are reckoned to take as long as one number on a CPU; the figure decides speed alone, no result."""


@dataclass(frozen=True)
class Entry:
    """One use of a layer in a step: its input a and the backprop b, as the layer has them."""

    layer: Any
    a: Tensor
    b: Tensor

    def ghostly(self, groups: Groups) -> bool:
        """Return whether norms from Gram matrices are cheaper than gradients a unit."""
        if isinstance(self.layer, nn.Embedding):
            return True
        if getattr(self.layer, "groups", 1) > 1:
            return False
        p, d = len(self.layer.weight), self.layer.weight[0].numel()
        length = self.b.numel() // (len(self.b) * p) * groups.most
        return bool(length**2 * (p + d) <= GRAM * p * d)

    def sequences(self) -> tuple[Tensor, Tensor]:
        """Return a [B,T,d] and b [B,T,p]; a convolution's a is unfolded."""
        if not isinstance(self.layer, nn.Conv2d):
            return self.a.flatten(1, -2) if self.a.ndim > 2 else self.a[:, None], _tokens(self.b)
        if pointwise(self.layer):
            return _pixels(self.a), _pixels(self.b)
        told = self.layer.kernel_size, self.layer.dilation, padding(self.layer), self.layer.stride
        return F.unfold(self.a, *told).mT, _pixels(self.b)

    def squares(self, groups: Groups) -> Tensor:
        """Return squared norms float32 [G] of each unit's gradient: the sum of (a a^T) (b b^T), entry by entry."""
        if isinstance(self.layer, nn.Embedding):
            words = groups.apart(self.a.reshape(len(self.a), -1))
            alike, b = (words[:, :, None] == words[:, None, :]).float(), _tokens(self.b)
        else:
            a, b = self.sequences()
            a = groups.apart(a).float()
            alike = a @ a.mT
        b = groups.apart(b).float()
        return ((b @ b.mT) * alike).sum((1, 2)).clamp_min(0.0)

    def gradients(self, groups: Groups) -> Tensor:
        """Return each unit's gradient float32 [G, *weight]."""
        if isinstance(self.layer, nn.Embedding):
            return self._of_words(groups)
        if isinstance(self.layer, nn.Conv2d) and self._one_by_one():
            sizes = groups.sizes.tolist()
            pieces = zip(torch.split(self.a, sizes), torch.split(self.b, sizes), strict=True)
            return torch.stack([_weight_gradient(self.layer, a, b) for a, b in pieces])
        a, b = self.sequences()
        found = torch.bmm(groups.apart(b).mT, groups.apart(a))
        return found.float().reshape(len(groups.sizes), *self.layer.weight.shape)

    def _one_by_one(self) -> bool:
        """Return convolutions are quicker by themselves on a CPU, and as matrix products elsewhere."""
        return self.layer.groups > 1 or (self.a.device.type == "cpu" and not pointwise(self.layer))

    def _of_words(self, groups: Groups) -> Tensor:
        words, width = self.layer.weight.shape
        at = groups.unit.reshape(-1, *[1] * (self.a.ndim - 1)) * words + self.a
        found = torch.zeros(len(groups.sizes) * words, width, device=self.b.device)
        found.index_add_(0, at.flatten(), self.b.float().reshape(-1, width))
        return found.reshape(-1, words, width)

    def scaled(self, groups: Groups, keep: Tensor) -> Tensor:
        """Sum over units of c g, float32, in the shape of the weight: in float32, as the norms are."""
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
    """Return [B,C,h,w] as [B,hw,C]; no copy where it lies channels last."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def pointwise(layer: nn.Conv2d) -> bool:
    """Return whether a convolution is a linear layer of each pixel."""
    return (layer.kernel_size, layer.stride, layer.groups, padding(layer)) == ((1, 1), (1, 1), 1, (0, 0))


def padding(layer: nn.Conv2d) -> tuple[int, ...]:
    """Return padding of the convolution proper: 0 where `padded` has done it."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return (0, 0)
    return tuple(layer.padding)


def padded(layer: Any, x: Tensor) -> Tensor:
    """Return x with the border that a convolution itself cannot make: mirrored, repeated, uneven."""
    if not isinstance(layer, nn.Conv2d) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str)):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


def output(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the layer computes of `padded` x."""
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight, layer.padding_idx)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, padding(layer), layer.dilation, layer.groups)


def input_gradient(layer: Any, x: Tensor, weight: Tensor, b: Tensor) -> Tensor:
    """Return the loss's gradient of x, from that of the output."""
    weight = weight.to(b.dtype)
    found: Tensor = b @ weight if isinstance(layer, nn.Linear) else _of_convolution(layer, b, x, weight, 0)
    return found


def bias_gradient(layer: Any, b: Tensor) -> Tensor:
    """Return the bias' gradient float32 [B,p], one a row."""
    over = (2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(1, b.ndim - 1))
    return b.sum(over, dtype=torch.float32) if over else b.float()


def _of_convolution(layer: Any, b: Tensor, a: Tensor, weight: Tensor, which: int) -> Tensor:
    """Gradient of the input (0) or of the weight (1)."""
    told = [0], layer.stride, padding(layer), layer.dilation, False, [0, 0], layer.groups
    wanted = [which == 0, which == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(b, a, weight, *told, wanted)[which]
    return found


def _weight_gradient(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    return _of_convolution(layer, b, a, layer.weight.detach().to(b.dtype), 1).float()
