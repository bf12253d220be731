"""The maps of a trained classifier's first stages, as a frozen network for perceptual losses (arXiv 1603.08155)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn

from medlt.classify.classifier import Classifier
from medlt.classify.networks import Network
from medlt.files import digest, digest_tensors
from medlt.types import InputError

STAGES = 4
"""Stages whose maps are compared: the stem and three more. The last one is left out: its maps are hardly local."""


class ClassifierMaps:
    """Images [B,1,H,W] in [0,1], of any size -> the maps of the first `STAGES` stages, each [B,F,h,w].

    The classifier is copied and frozen; gradients pass to the images. See medlt.diffusion.emphasis.Features.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.net: Network = copy.deepcopy(classifier.net).eval().float().requires_grad_(False)
        self.digest = digest("classifier maps", STAGES, digest_tensors(self.net.state_dict()))
        self._stages = list(_stages(self.net.body))

    def __call__(self, images: Tensor) -> list[Tensor]:
        x, maps = self.net.standardise(images), []
        for stage in self._stages:
            x = stage(x)
            maps.append(x.clone())  # the next stage may work in place
        return maps


def _stages(body: Any) -> Iterator[nn.Module]:
    """Yield the stages of a MONAI network in their order. Raises InputError for a network without known stages."""
    if isinstance(body, ResNet):
        pool = [] if body.no_max_pool else [body.maxpool]
        yield nn.Sequential(body.conv1, body.bn1, body.act)
        yield nn.Sequential(*pool, body.layer1)
        yield from (body.layer2, body.layer3)
    elif isinstance(body, DenseNet):
        parts = dict(body.features.named_children())
        yield nn.Sequential(parts["conv0"], parts["norm0"], parts["relu0"])
        yield nn.Sequential(parts["pool0"], parts["denseblock1"])
        yield nn.Sequential(parts["transition1"], parts["denseblock2"])
        yield nn.Sequential(parts["transition2"], parts["denseblock3"])
    else:
        raise InputError(f"feature maps: {type(body).__name__} has no known stages; use one of medlt's networks")
