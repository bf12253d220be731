"""Image classifiers, built from MONAI networks: images [B,1,S,S] standardised -> logits [B,K]."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import DenseNet121, ResNet
from torch import nn

from medlt.types import InputError

NORM: tuple[str, dict[str, Any]] = ("group", {"num_groups": 8})


def small(findings: int) -> nn.Module:
    """A narrow ResNet-10 with a stride-2 stem (He et al. 2015, arXiv 1512.03385)."""
    planes = [32, 64, 128, 256]
    stem = {"n_input_channels": 1, "conv1_t_size": 7, "conv1_t_stride": 2, "spatial_dims": 2}
    return ResNet("basic", [1, 1, 1, 1], planes, num_classes=findings, norm=NORM, **stem)  # type: ignore[no-any-return]


def densenet121(findings: int) -> nn.Module:
    """DenseNet-121 (Huang et al. 2016, arXiv 1608.06993), the network of CheXNet."""
    return DenseNet121(spatial_dims=2, in_channels=1, out_channels=findings)  # type: ignore[no-any-return]


NETWORKS = {"small": small, "densenet121": densenet121}


def network(name: str, findings: int, seed: int = 0) -> nn.Module:
    """A fresh network by name, with `findings` logits, channels last.

    Its weights are drawn from `seed`; torch's global generator is left as it was.
    """
    if name not in NETWORKS:
        raise InputError(f"no classifier network named {name!r}; choose one of {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: Any = NETWORKS[name](findings)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]
