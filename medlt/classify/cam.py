"""Compute class activation maps of image classifiers: which pixels support a finding. `medlt.sparse.cam` has the
methods.

The gradient is that of sum_b logit[b, c_b]: samples are independent, so a batch gives the same maps as single images.
It is taken with respect to the last feature map, by running the network up to that layer.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn

from medlt.classify.networks import Network
from medlt.classify.train import Classifier, standardised
from medlt.sparse.cam import MAPS, normalise
from medlt.types import InputError


def _stages(net: Network) -> tuple[nn.Module, nn.Module]:
    """Split a MONAI network at its last feature map: images -> maps [B,F,h,w], maps -> features [B,D]."""
    body: Any = net.body
    if isinstance(body, DenseNet):
        return body.features, body.class_layers
    if isinstance(body, ResNet):
        pool = [] if body.no_max_pool else [body.maxpool]
        layers = (body.conv1, body.bn1, body.act, *pool, body.layer1, body.layer2, body.layer3, body.layer4)
        return nn.Sequential(*layers), nn.Sequential(body.avgpool, nn.Flatten())
    raise InputError(f"cam: {type(body).__name__} has no known last feature map; use one of medlt's networks")


def class_activation_map(
    classifier: Classifier, images: Tensor, finding: Tensor, method: str = "gradcam", chunk: int = 64
) -> Tensor:
    """Return maps [B,h,w] in [0,1], on the CPU, of images [B,1,S,S] in [0,1] for the finding of each, `finding` int64
    [B].

    S is the classifier's size. The classifier is not changed. Raises InputError for an unknown method or network.
    """
    if method not in MAPS:
        raise InputError(f"cam: {method!r} is not a method; choose one of {', '.join(MAPS)}")
    net = copy.deepcopy(classifier.net).eval().requires_grad_(False)
    place = net.head.weight.device
    pairs = zip(torch.split(images, chunk), torch.split(finding, chunk), strict=True)
    return torch.cat([_maps(net, part.to(place), of.to(place), method).cpu() for part, of in pairs])


def _maps(net: Network, images: Tensor, finding: Tensor, method: str) -> Tensor:
    below, above = _stages(net)
    with torch.no_grad():
        maps = below(standardised(images))
    with torch.enable_grad():
        maps = maps.detach().requires_grad_()
        logits = net.head(above(maps.clone()))  # the clone: MONAI's first layer above may work in place
        (gradient,) = torch.autograd.grad(logits.gather(1, finding[:, None]).sum(), maps)
    return normalise(MAPS[method](maps.detach(), gradient))
