"""Class activation maps of the classifier on codes.

Grad-CAM arXiv 1610.02391, HiRes-CAM arXiv 2011.08891, Layer-CAM (TIP 2021, doi 10.1109/TIP.2021.3089943),
Eigen-CAM arXiv 2008.00299. With f [F,h,w] the features and g = d logit_c / d f:

| method | map before ReLU |
|---|---|
| gradcam | sum_k mean_hw(g_k) f_k |
| hirescam | sum_k g_k f_k |
| layercam | sum_k relu(g_k) f_k |
| eigencam | projection of f on its first principal direction; independent of the class, for ablations only |

The gradient is that of sum_b logit[b, c_b]. Samples do not mix, so a batch gives the same maps as single samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medlt.sparse.embedding import SimplicialCoder, evaluating
from medlt.types import InputError


def _gradcam(features: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1)


def _hirescam(features: Tensor, gradient: Tensor) -> Tensor:
    return (gradient * features).sum(1)


def _layercam(features: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.relu() * features).sum(1)


def _eigencam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return the projection. The sign of the direction is free, and is chosen to agree with the mean activation."""
    flat = features.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    direction = torch.linalg.eigh(centred @ centred.mT).eigenvectors[..., -1:]
    maps: Tensor = (direction * centred).sum(1)
    sign = (maps * centred.mean(1)).sum(1, keepdim=True).sign()
    signed: Tensor = maps * torch.where(sign == 0, 1.0, sign)
    return signed.view(len(features), *features.shape[2:])


MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "hirescam": _hirescam,
    "layercam": _layercam,
    "eigencam": _eigencam,
}


def normalise(maps: Tensor) -> Tensor:
    """Apply ReLU, then scale each map [B,h,w] to [0,1]. A map without evidence is 0 everywhere."""
    maps = maps.relu()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def code_activation_map(coder: SimplicialCoder, s: Tensor, finding: Tensor, method: str = "gradcam") -> Tensor:
    """Return the maps of `class_activation_map` from codes s [B,L,V,h,w]."""
    if method not in MAPS:
        raise InputError(f"cam: {method!r} is unknown; choose one of {', '.join(MAPS)}")
    with evaluating(coder):
        with torch.no_grad():
            features = coder.features(s)
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            score = coder.classifier.logits(features).gather(1, finding.to(s.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, features)
    return normalise(MAPS[method](features.detach(), gradient))


def class_activation_map(coder: SimplicialCoder, z: Tensor, finding: Tensor, method: str = "gradcam") -> Tensor:
    """Return maps [B,h,w] in [0,1] of latents z [B,C,h,w] for the finding of each sample, `finding` int64 [B].

    The coder runs in eval mode and returns to its mode. Raises InputError for an unknown method.
    """
    with evaluating(coder), torch.no_grad():
        s = coder.code(z)
    return code_activation_map(coder, s, finding, method)
