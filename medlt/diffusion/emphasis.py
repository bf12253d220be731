"""What the training of an autoencoder keeps beside the mean of all pixels: edges, lesions, and features.

| term | of image x and reconstruction y in [-1,1] |
|---|---|
| pixels | mean of (1 + lesion_weight m) abs(y - x); m in [0,1] is where a finding is |
| edge | L1 between the finite differences of y and x, at several scales |
| features | mean over layers l of mean abs(f_l(y) - f_l(x)) / mean abs(f_l(x)), f of a frozen network |

The last one is a perceptual loss (arXiv 1603.08155). L1 alone is a mean over all pixels: a lesion on 2 % of the image
has 2 % of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medlt.files import digest, digest_tensors
from medlt.processes import reduce


class Features(Protocol):
    """Maps of a frozen network: images [B,1,H,W] in [0,1] -> tensors [B,F,h,w], differentiable in the images."""

    @property
    def digest(self) -> str:
        """Digest of the network's weights and of the layers."""
        ...

    def __call__(self, images: Tensor, /) -> Sequence[Tensor]: ...


def gradient_error(out: Tensor, x: Tensor, scales: int = 3) -> Tensor:
    """Return the mean L1 between finite differences of two image batches [B,c,H,W], over `scales` halvings of size."""
    return torch.stack([error.mean() for error in _gradient_errors(out, x, scales)]).mean()


def gradient_errors(out: Tensor, x: Tensor, scales: int = 3) -> Tensor:
    """Return the gradient error of each image, [B]."""
    return torch.stack([error.flatten(1).mean(1) for error in _gradient_errors(out, x, scales)]).mean(0)


def _gradient_errors(out: Tensor, x: Tensor, scales: int) -> list[Tensor]:
    errors = []
    for _ in range(scales):
        errors += [(out.diff(dim=dim) - x.diff(dim=dim)).abs() for dim in (2, 3)]
        out, x = functional.avg_pool2d(out, 2), functional.avg_pool2d(x, 2)
    return errors


def feature_errors(features: Features, out: Tensor, x: Tensor) -> Tensor:
    """Return the relative L1 between the maps of two image batches [B,1,H,W] in [-1,1], of each image, [B].

    Each layer is divided by its mean magnitude over the batch of `x`, so that all layers count alike.
    """
    with torch.no_grad():
        real = features((x + 1) / 2)
    pairs = zip(features((out + 1) / 2), real, strict=True)
    errors = [(a - b).abs().flatten(1).mean(1) / reduce(b.abs().mean(), mean=True).clamp_min(1e-6) for a, b in pairs]
    return torch.stack(errors).mean(0)


@dataclass(frozen=True)
class Emphasis:
    """The weights of the terms of the module's table, and what they need.

    lesions: uint8 [N,1,h,w], 255 where a finding is, of the N train images in their order; any size.
    """

    edge: float = 0.0
    lesion_weight: float = 0.0
    lesions: Tensor | None = None
    feature_weight: float = 0.0
    features: Features | None = None

    @property
    def digest(self) -> str:
        """Digest of weights, lesions and network, for the key of what is trained."""
        lesions = self.lesion_weight and self.lesions is not None and digest_tensors({"lesions": self.lesions})
        network = self.feature_weight and self.features is not None and self.features.digest
        return digest("emphasis", self.edge, self.lesion_weight, lesions, self.feature_weight, network)

    def errors(self, out: Tensor, x: Tensor, rows: np.ndarray) -> Tensor:
        """Return the error of each image [B]: reconstructions `out` of `x`, both [B,1,H,W] in [-1,1], of these rows."""
        error = (out - x).abs()
        if self.lesion_weight and self.lesions is not None:
            error = error * (1 + self.lesion_weight * self._maps(rows, x))
        total = error.flatten(1).mean(1)
        if self.edge:
            total = total + self.edge * gradient_errors(out, x)
        if self.feature_weight and self.features is not None:
            total = total + self.feature_weight * feature_errors(self.features, out, x)
        return total

    def _maps(self, rows: np.ndarray, x: Tensor) -> Tensor:
        """Return the lesion maps of these rows in [0,1], at the size and on the device of `x`."""
        assert self.lesions is not None
        maps = self.lesions[torch.from_numpy(np.asarray(rows, np.int64))].to(x.device).float() / 255
        return functional.interpolate(maps, x.shape[-2:], mode="bilinear", align_corners=False)


PLAIN = Emphasis()
"""Every pixel alike, and nothing else."""
