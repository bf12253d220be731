"""Image classifiers: images [B,1,S,S] in [0,1] -> standardised -> features [B,D] -> logits [B,K].

The networks are those of MONAI, in the exact shape of torchvision's where weights of that shape are published.
`medlt.classify.pretrained` reads such weights, and `medlt.classify.folder` has the models of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import DenseNet, DenseNet121, ResNet
from torch import Tensor, nn

from medlt.classify.folder import VisionModel
from medlt.types import InputError

NORM: tuple[str, dict[str, Any]] = ("group", {"num_groups": 8})
OWN: dict[str, Sequence[float]] = {"mean": (0.5,), "deviation": (0.25,)}
"""Standardisation of the networks that start from random weights."""
FOLDER = "folder"
"""Name of the network whose architecture is that of a Hugging Face folder."""


class Standardise(nn.Module):
    """Images [B,1,S,S] in [0,1] -> (x - mean) / deviation, [B,C,S,S], channels last; one mean and deviation a channel.

    With three channels the grey image is repeated. Border pixels of a convolution are padded after this, as where the
    weights were trained, so no folding into weights is needed, which would change them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the input of a network."""
        return ((images - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)


class Network(nn.Module):
    """A linear `head` [D] -> [K] on the pooled features of a `body`, whose input is `standardise(images)`.

    The head computes in float32 under autocast too: bfloat16 keeps 8 bits of a logit, which ties ranks. `standardise`
    is by OWN unless it is given; nn.Identity() for a body that takes its input as it is.
    """

    def __init__(self, body: nn.Module, head: nn.Linear, standardise: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.standardise = standardise or Standardise(**OWN)

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the head, [B,D]."""
        features: Tensor = self.body(self.standardise(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K], float32."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.to(self.head.weight.dtype))
        return logits


def small(findings: int, channels: int = 1) -> Network:
    """Return a narrow ResNet-10 with a stride-2 stem (He et al. 2015, arXiv 1512.03385); D = 256.

    MONAI 1.6 gives `norm` to the stem only: the stem has group norm, the blocks have batch norm. The statistics of a
    block therefore hold added rows too. Group norm in the blocks lost 0.05 to 0.07 macro AP on synthetic radiographs.
    """
    stem = {"n_input_channels": channels, "conv1_t_size": 7, "conv1_t_stride": 2, "spatial_dims": 2}
    body = ResNet("basic", [1, 1, 1, 1], [32, 64, 128, 256], num_classes=findings, norm=NORM, **stem)
    head, body.fc = body.fc, nn.Identity()
    return Network(body, head)


def resnet50(findings: int, channels: int = 1) -> Network:
    """Return ResNet-50 in the shape of torchvision's v1.5: the 3x3 convolution of a block has the stride; D = 2048."""
    stem = {"n_input_channels": channels, "conv1_t_size": 7, "conv1_t_stride": 2, "spatial_dims": 2}
    body = ResNet("bottleneck", [3, 4, 6, 3], [64, 128, 256, 512], num_classes=findings, bias_downsample=False, **stem)
    head, body.fc = body.fc, nn.Identity()
    return Network(body, head)


def densenet121(findings: int, channels: int = 1) -> Network:
    """Return DenseNet-121 (Huang et al. 2016, arXiv 1608.06993), the network of CheXNet; D = 1024."""
    return _split(DenseNet121(spatial_dims=2, in_channels=channels, out_channels=findings))


def dense(findings: int, channels: int = 1) -> Network:
    """Return a DenseNet as narrow as `small`, a second architecture for guidance; D = 120."""
    options = {"init_features": 32, "growth_rate": 16, "block_config": (2, 4, 4, 4), "norm": NORM}
    return _split(DenseNet(spatial_dims=2, in_channels=channels, out_channels=findings, **options))


def _split(body: Any) -> Network:
    """Return a MONAI DenseNet as body and last layer."""
    head, body.class_layers.out = body.class_layers.out, nn.Identity()
    return Network(body, head)


NETWORKS: dict[str, Callable[..., Network]] = {
    "small": small, "dense": dense, "densenet121": densenet121, "resnet50": resnet50
}  # fmt: skip


def known_network(name: str) -> None:
    """Raise InputError for an unknown network name."""
    if name not in (*NETWORKS, FOLDER):
        raise InputError(f"no classifier network is named {name!r}; choose one of {', '.join((*NETWORKS, FOLDER))}")


def network(name: str, findings: int, seed: int = 0, spec: Mapping[str, Any] | None = None) -> Network:
    """Return a fresh network by name, with `findings` logits, channels last.

    Its weights are drawn from `seed`; torch's global generator does not change. spec: of pretrained weights, see
    `medlt.classify.pretrained`; it sets the channels and the standardisation of the input, and for the network "folder"
    the architecture. Raises InputError for an unknown name.
    """
    known_network(name)
    given = OWN if spec is None else spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _of_folder(given, findings) if name == FOLDER else NETWORKS[name](findings, len(given["mean"]))
    net.standardise = Standardise(given["mean"], given["deviation"])
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def _of_folder(spec: Mapping[str, Any], findings: int) -> Network:
    """Return a network on a model of Hugging Face, with random weights."""
    if "config" not in spec:
        raise InputError("classifier.network: folder needs a model; write classifier.weights: PATH of its folder")
    body = VisionModel(spec)
    return Network(body, nn.Linear(int(spec["width"]), findings))
