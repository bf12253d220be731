"""Random weights in the formats in which weights are published, and what their own libraries compute from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

MEAN, DEVIATION = [0.53, 0.41, 0.4], [0.25, 0.22, 0.2]
BLOCKS = (6, 12, 24, 16)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STAGES = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
MODELS: dict[str, tuple[Any, Any, int]] = {
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config(**TINY, image_size=70, patch_size=14), 70),
    "vit": (transformers.ViTModel, transformers.ViTConfig(**TINY, image_size=64, patch_size=16), 64),
    "vit_classifier": (
        transformers.ViTForImageClassification, transformers.ViTConfig(**TINY, image_size=64, patch_size=16), 64
    ),
    "resnet": (transformers.ResNetForImageClassification, transformers.ResNetConfig(embedding_size=8, **STAGES), 64),
    "convnext": (transformers.ConvNextModel, transformers.ConvNextConfig(**STAGES), 64),
    "swin": (
        transformers.SwinModel,
        transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4), 64
    ),
}  # fmt: skip
"""Models of Hugging Face by name: class, config, and a size that they take."""


def random(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def norm(weights: dict[str, Tensor], name: str, width: int, draw: torch.Generator, counted: bool) -> None:
    """A trained batch norm: its statistics are not those of a fresh one."""
    weights |= {f"{name}.weight": 1 + random((width,), draw, 0.1), f"{name}.bias": random((width,), draw, 0.1)}
    weights |= {f"{name}.running_mean": random((width,), draw, 0.1)}
    weights |= {f"{name}.running_var": 1 + torch.rand(width, generator=draw)}
    if counted:
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)


def convolution(shape: tuple[int, int, int, int], draw: torch.Generator) -> Tensor:
    return random(shape, draw, (2 / (shape[1] * shape[2] * shape[3])) ** 0.5)


def densenet121(channels: int = 3, seed: int = 0, counted: bool = True) -> dict[str, Tensor]:
    """Random weights by torchvision's names (arXiv 1608.06993: growth 32, blocks of 6, 12, 24 and 16 layers)."""
    draw, weights, width = torch.Generator().manual_seed(seed), dict[str, Tensor](), 64
    weights["features.conv0.weight"] = convolution((64, channels, 7, 7), draw)
    norm(weights, "features.norm0", 64, draw, counted)
    for block, layers in enumerate(BLOCKS, 1):
        for layer in range(1, layers + 1):
            at = f"features.denseblock{block}.denselayer{layer}"
            norm(weights, f"{at}.norm1", width, draw, counted)
            weights[f"{at}.conv1.weight"] = convolution((128, width, 1, 1), draw)
            norm(weights, f"{at}.norm2", 128, draw, counted)
            weights[f"{at}.conv2.weight"] = convolution((32, 128, 3, 3), draw)
            width += 32
        if block < 4:
            norm(weights, f"features.transition{block}.norm", width, draw, counted)
            weights[f"features.transition{block}.conv.weight"] = convolution((width // 2, width, 1, 1), draw)
            width //= 2
    norm(weights, "features.norm5", width, draw, counted)
    return weights | {"classifier.weight": random((18, width), draw), "classifier.bias": random((18,), draw)}


def densenet121_features(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The features of torchvision's DenseNet-121, written from the paper's table on these names: [B,1024]."""

    def active(name: str, x: Tensor) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.relu(F.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5))

    x = F.conv2d(x, weights["features.conv0.weight"], stride=2, padding=3)
    x = F.max_pool2d(active("features.norm0", x), 3, 2, 1)
    for block, layers in enumerate(BLOCKS, 1):
        for layer in range(1, layers + 1):
            at = f"features.denseblock{block}.denselayer{layer}"
            narrow = F.conv2d(active(f"{at}.norm1", x), weights[f"{at}.conv1.weight"])
            x = torch.cat([x, F.conv2d(active(f"{at}.norm2", narrow), weights[f"{at}.conv2.weight"], padding=1)], 1)
        if block < 4:
            at = f"features.transition{block}"
            x = F.avg_pool2d(F.conv2d(active(f"{at}.norm", x), weights[f"{at}.conv.weight"]), 2)
    return active("features.norm5", x).mean((2, 3))


def resnet50_model(channels: int = 3, seed: int = 0) -> Any:
    """transformers' ResNet-50, with random statistics: its architecture is torchvision's v1.5."""
    torch.manual_seed(seed)
    config = transformers.ResNetConfig(num_channels=channels, downsample_in_bottleneck=False)
    model, draw = transformers.ResNetModel(config).eval(), torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean = random(tuple(part.weight.shape), draw, 0.1)
            part.running_var = 1 + torch.rand(part.weight.shape, generator=draw)
            torch.nn.init.uniform_(part.weight, 0.4, 0.6)
    return model


def resnet50(model: Any, prefix: str = "") -> dict[str, Tensor]:
    """Its weights by torchvision's names."""
    names = (("embedder.embedder.convolution", "conv1"), ("embedder.embedder.normalization", "bn1"))
    weights = {}
    for name, value in model.state_dict().items():
        for old, new in names:
            name = name.replace(old, new)
        if name.startswith("encoder"):
            _, _, stage, _, block, *rest = name.split(".")
            kind = {"convolution": ("conv", "downsample.0"), "normalization": ("bn", "downsample.1")}[rest[-2]]
            part = kind[1] if rest[0] == "shortcut" else f"{kind[0]}{int(rest[1]) + 1}"
            name = f"layer{int(stage) + 1}.{block}.{part}.{rest[-1]}"
        weights[prefix + name] = value.clone()
    return weights | {f"{prefix}fc.weight": torch.zeros(1000, 2048), f"{prefix}fc.bias": torch.zeros(1000)}


def write(weights: dict[str, Tensor], file: Path) -> Path:
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


def write_model(name: str, folder: Path, seed: int = 0) -> Path:
    """A folder of a Hugging Face model with random weights."""
    kind, config, _ = MODELS[name]
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    scale = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    text = json.dumps({**scale, "image_mean": MEAN, "image_std": DEVIATION})
    (folder / "preprocessor_config.json").write_text(text)
    return folder


def rgb(images: Tensor, mean: list[float], deviation: list[float]) -> Tensor:
    """Grey images [B,1,S,S] in [0,1] as a three-channel pipeline makes them."""
    centre, scale = (torch.tensor(part)[None, :, None, None] for part in (mean, deviation))
    return (images.repeat(1, 3, 1, 1) - centre) / scale
