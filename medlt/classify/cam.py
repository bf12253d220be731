"""Compute class activation maps of image classifiers: which pixels support a finding. `medlt.sparse.cam` has the
methods.

`class_activation_map` uses the last feature map, `layer_activation_map` the sum of earlier ones. On synthetic
radiographs with known lesions the last layer is at chance (pixel AUROC 0.51), and the sum of layers 1 to 3 is best.

The gradient is that of sum_b logit[b, c_b]: samples are independent, so a batch gives the same maps as single images.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from medlt.classify.networks import Network
from medlt.classify.train import Classifier
from medlt.sparse.cam import MAPS, normalise
from medlt.types import InputError

LAYERS = (1, 2, 3)
"""Layers that are summed, 1 the finest. Each network has four."""


def _layers(net: Network) -> tuple[list[nn.Module], nn.Module]:
    """Split a MONAI network behind each of its four layers: parts that make maps [B,F,h,w], and maps -> features."""
    body: Any = net.body
    if isinstance(body, DenseNet):
        one = body.features
        stem = nn.Sequential(one.conv0, one.norm0, one.relu0, one.pool0)
        blocks = [nn.Sequential(getattr(one, f"transition{n}"), getattr(one, f"denseblock{n + 1}")) for n in (1, 2, 3)]
        first = nn.Sequential(stem, one.denseblock1)
        return [first, *blocks[:-1], nn.Sequential(blocks[-1], one.norm5)], body.class_layers
    if isinstance(body, ResNet):
        pool = [] if body.no_max_pool else [body.maxpool]
        first = nn.Sequential(body.conv1, body.bn1, body.act, *pool, body.layer1)
        return [first, body.layer2, body.layer3, body.layer4], nn.Sequential(body.avgpool, nn.Flatten())
    raise InputError(f"cam: {type(body).__name__} has no known last feature map; use one of medlt's networks")


def frozen(classifier: Classifier) -> Network:
    """Return a copy of the network for maps: in eval mode, and without gradients of its weights."""
    return copy.deepcopy(classifier.net).eval().requires_grad_(False)


def class_activation_map(
    classifier: Classifier, images: Tensor, finding: Tensor, method: str = "gradcam", chunk: int = 64
) -> Tensor:
    """Return maps [B,h,w] in [0,1], on the CPU, of images [B,1,S,S] in [0,1] for the finding of each, `finding` int64
    [B].

    S is the classifier's size. The classifier is not changed. Raises InputError for an unknown method or network.
    """
    if method not in MAPS:
        raise InputError(f"cam: {method!r} is not a method; choose one of {', '.join(MAPS)}")
    net = frozen(classifier)
    place = net.head.weight.device
    pairs = zip(torch.split(images, chunk), torch.split(finding, chunk), strict=True)
    maps = [layer_maps(net, part.to(place), of.to(place), (4,), method)[0].cpu() for part, of in pairs]
    return normalise(torch.cat(maps))


def layer_maps(
    net: Network, images: Tensor, finding: Tensor, layers: Sequence[int] = LAYERS, method: str = "layercam"
) -> list[Tensor]:
    """Return the map [B,h,w] of each layer, with its own h and w and not normalised; arguments as above."""
    parts, above = _layers(net)
    with torch.enable_grad():
        x, kept = net.standardise(images).requires_grad_(), []
        for number, part in enumerate(parts, 1):
            x = part(x)
            if number in layers:
                kept.append(x)
                x = x.clone()  # MONAI's next layer may work in place
        score = net.head(above(x)).gather(1, finding[:, None]).sum()
        gradients = torch.autograd.grad(score, kept)
    return [MAPS[method](maps.detach(), gradient) for maps, gradient in zip(kept, gradients, strict=True)]


def layer_activation_map(net: Network, images: Tensor, finding: Tensor) -> Tensor:
    """Return maps [B,S,S] >= 0: the LayerCAM of LAYERS, each scaled to a maximum of 1, resized and summed.

    net: as `frozen` returns it; images: [B,1,S,S] in [0,1]; finding: int64 [B].
    """
    size = images.shape[-2:]
    maps = [peak_one(one.relu()) for one in layer_maps(net, images, finding)]
    return torch.stack([F.interpolate(one[:, None], size, mode="bilinear")[:, 0] for one in maps]).sum(0)


def peak_one(maps: Tensor) -> Tensor:
    """Return maps [B,h,w] >= 0, each divided by its maximum. A map of zeros stays."""
    high = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(high > 0, high, 1.0)
