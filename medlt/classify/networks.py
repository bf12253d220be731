"""Image classifiers, built from MONAI networks: images [B,1,S,S] standardised -> features [B,D] -> logits [B,K]."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import DenseNet, DenseNet121, ResNet
from torch import Tensor, nn

from medlt.types import InputError

NORM: tuple[str, dict[str, Any]] = ("group", {"num_groups": 8})


class Network(nn.Module):
    """A linear `head` [D] -> [K] on the pooled features of a `body`: images [B,1,S,S] -> logits [B,K]."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the head, [B,D]."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def small(findings: int) -> Network:
    """Return a narrow ResNet-10 with a stride-2 stem (He et al. 2015, arXiv 1512.03385); D = 256.

    MONAI 1.6 gives `norm` to the stem only: the stem has group norm, the blocks have batch norm. The statistics of a
    block therefore hold added rows too. Group norm in the blocks lost 0.05 to 0.07 macro AP on synthetic radiographs.
    """
    planes = [32, 64, 128, 256]
    stem = {"n_input_channels": 1, "conv1_t_size": 7, "conv1_t_stride": 2, "spatial_dims": 2}
    body = ResNet("basic", [1, 1, 1, 1], planes, num_classes=findings, norm=NORM, **stem)
    head, body.fc = body.fc, nn.Identity()
    return Network(body, head)


def densenet121(findings: int) -> Network:
    """Return DenseNet-121 (Huang et al. 2016, arXiv 1608.06993), the network of CheXNet; D = 1024."""
    return _split(DenseNet121(spatial_dims=2, in_channels=1, out_channels=findings))


def dense(findings: int) -> Network:
    """Return a DenseNet as narrow as `small`, a second architecture for guidance; D = 120."""
    options = {"init_features": 32, "growth_rate": 16, "block_config": (2, 4, 4, 4), "norm": NORM}
    return _split(DenseNet(spatial_dims=2, in_channels=1, out_channels=findings, **options))


def _split(body: Any) -> Network:
    """Return a MONAI DenseNet as body and last layer."""
    head, body.class_layers.out = body.class_layers.out, nn.Identity()
    return Network(body, head)


NETWORKS = {"small": small, "dense": dense, "densenet121": densenet121}


def known_network(name: str) -> None:
    """Raise InputError for an unknown network name."""
    if name not in NETWORKS:
        raise InputError(f"no classifier network is named {name!r}; choose one of {', '.join(NETWORKS)}")


def network(name: str, findings: int, seed: int = 0) -> Network:
    """Return a fresh network by name, with `findings` logits, channels last.

    Its weights are drawn from `seed`; torch's global generator does not change. Raises InputError for an unknown name.
    """
    known_network(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NETWORKS[name](findings)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]
