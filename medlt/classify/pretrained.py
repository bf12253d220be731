"""Pretrained weights: a safetensors file of torchvision's shapes, or a folder of Hugging Face. No pickle is read.

| network | names of the file | channels | input |
|---|---|---|---|
| resnet50 | torchvision, timm; torchxrayvision's with `model.` in front | 3 | ImageNet's mean and deviation |
| densenet121 | torchvision (also `norm.1` of its published files), timm | 3 | ImageNet's mean and deviation |
| both | the same | 1 | [-1024, 1024], as torchxrayvision's |
| folder | those of transformers | as its config | preprocessor_config.json |

Every tensor of a file is used, but for the last layer, which a head of the run's findings replaces, `op_threshs`
(torchxrayvision's thresholds of that layer) and `num_batches_tracked` (which no pass reads). A tensor that is missing,
surplus or of another shape is an error. What is recorded is the `spec`: the standardisation of the input, the digest of
the contents, and the architecture of a folder. It is part of the key of a training; the path is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medlt.classify.folder import load_model, read_folder, require_folder_size
from medlt.classify.networks import FOLDER, NETWORKS, Network
from medlt.files import digest_unchanged, read_tensors
from medlt.names import did_you_mean
from medlt.types import InputError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}
XRAYVISION = {"mean": [0.5], "deviation": [1 / 2048]}
"""Of 3 channels: torchvision's normalisation. Of 1 channel: [0,1] -> [-1024, 1024], 2048 x - 1024."""
STEMS = {"resnet50": "conv1.weight", "densenet121": "features.conv0.weight"}
"""The networks with published weights, and the name of their first convolution."""
LAST = re.compile(r"(fc|classifier)\.(weight|bias)|op_threshs")
RENAMES = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"(\.denselayer\d+)\.(norm|conv)\.?([12])\."), r"\1.layers.\2\3."),
)
"""Names of the file -> names of MONAI's network; all others are equal."""
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
CONVERT = (
    "safetensors.torch.save_file({k: v.contiguous() for k, v in torch.load(FILE, weights_only=True).items()}, OUT), "
    "see docs/how-to/pretrained.md"
)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Pretrained:
    """Weights for the body of a network: where they are, and their spec (see the module)."""

    path: Path
    spec: dict[str, Any]

    def load(self, net: Network) -> None:
        """Load the weights into the body of a network of this spec, in place; the head stays as it is."""
        if "config" in self.spec:
            load_model(net.body, self.path)
            return
        given = {_renamed(name): value.float() for name, value in read_tensors(self.path).items() if _used(name)}
        own = net.body.state_dict()
        counts = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
        if broken := [name for name, value in given.items() if not value.isfinite().all()]:
            raise InputError(f"classifier.weights: {self.path}: {broken[0]} holds NaN or infinity; get another file")
        net.body.load_state_dict({**counts, **given})


def read_pretrained(network: str, path: Path | str) -> Pretrained:
    """Return the weights at `path` for a network by name. Names and shapes of all tensors are checked.

    Raises InputError, in one line, for a network without published weights, a missing path, a pickle, a file that is no
    safetensors, a tensor that is missing, surplus or of another shape, and what `medlt.classify.folder` refuses.
    """
    path = Path(path)
    if network == FOLDER:
        return Pretrained(path, read_folder(path))
    if network not in STEMS:
        fits = ", ".join((*STEMS, FOLDER))
        raise InputError(f"classifier.weights: no weights are published for network {network}; choose one of {fits}")
    require_safetensors(path)
    shapes = file_shapes(path)
    channels = _require_fits(network, shapes, path)
    scale = IMAGENET if channels == 3 else XRAYVISION
    return Pretrained(path, {**scale, "digest": digest_unchanged(path)})


def require_size(network: str, pretrained: Pretrained | None, size: int) -> None:
    """Raise InputError for a size of images, pixels, that a network cannot take."""
    if network == FOLDER and pretrained is not None:
        require_folder_size(pretrained.spec, size, pretrained.path)


def require_safetensors(path: Path) -> None:
    """Raise InputError for a path that is no file, or a pickle."""
    if path.suffix in PICKLED:
        raise InputError(
            f"classifier.weights: {path} is a pickle, which can run code when it is opened; convert it once: {CONVERT}"
        )
    if not path.is_file():
        kind = "is a folder; write classifier.network: folder" if path.is_dir() else "does not exist; correct the path"
        raise InputError(f"classifier.weights: {path} {kind}")


def file_shapes(path: Path) -> Shapes:
    """Return the shape of every tensor of a file, by its header. Raises InputError for a file that is damaged."""
    try:
        with safe_open(path, "pt") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
    except (SafetensorError, OSError):
        raise InputError(
            f"classifier.weights: {path} is damaged or no safetensors file; convert it: {CONVERT}"
        ) from None


def _used(name: str) -> bool:
    """Return whether a tensor of a file belongs to the body."""
    return not (LAST.fullmatch(_renamed(name)) or name.endswith("num_batches_tracked"))


def _renamed(name: str) -> str:
    for pattern, other in RENAMES:
        name = pattern.sub(other, name)
    return name


@lru_cache(maxsize=8)
def _expected(network: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a network's body needs."""
    with torch.device("meta"):
        body: dict[str, Tensor] = NETWORKS[network](1, channels).body.state_dict()
    return {name: tuple(one.shape) for name, one in body.items() if not name.endswith("num_batches_tracked")}


def _require_fits(network: str, shapes: Shapes, path: Path) -> int:
    """Return the channels of the input, 1 or 3. Raises InputError unless names and shapes are those of the network."""
    given = {_renamed(name): shape for name, shape in shapes.items() if _used(name)}
    names = {_renamed(name): name for name in shapes}
    stem = given.get(STEMS[network], ())
    channels = 1 if len(stem) == 4 and stem[1] == 1 else 3
    wanted = _expected(network, channels)
    problem = ""
    if missing := [name for name in wanted if name not in given]:
        close = did_you_mean(missing[0], list(given))
        problem = f"has no tensor {missing[0]} ({len(missing)} are missing){close or ''}"
    elif surplus := [name for name in given if name not in wanted]:
        problem = f"has a tensor {names[surplus[0]]} that {network} does not have"
    elif other := [name for name, shape in wanted.items() if given[name] != shape]:
        problem = f"{names[other[0]]} has shape {list(given[other[0]])}, {network} needs {list(wanted[other[0]])}"
    if not problem:
        return channels
    match = [one for one, first in STEMS.items() if one != network and first in given]
    hint = f"write classifier.network: {match[0]}" if match else f"give weights of a torchvision or timm {network}"
    raise InputError(f"classifier.weights: {path}: {problem}; {hint}")
