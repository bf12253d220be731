"""A given public encoder for the copy search of an audit: a vision model of Hugging Face in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from medlt.classify.folder import VisionModel, load_model, read_folder
from medlt.types import InputError

BLOCK = 32
USUAL = 224
"""Side of the images that a model is given whose config names none, pixels."""


@dataclass(frozen=True)
class GivenEncoder:
    """A frozen vision model as a function of images, see `medlt.privacy.audit.embedding.Embed`.

    size: side of the images that it was made for, pixels; mean, deviation: of each of its channels, [C,1,1].
    """

    network: VisionModel
    size: int
    mean: Tensor
    deviation: Tensor

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return unit vectors [B,D], on the CPU, of images [B,1,H,W], uint8 or float in [0,1]."""
        if not len(images):
            return torch.zeros(0, 1)
        return torch.cat([self._embedded(block) for block in torch.split(images, BLOCK)])

    def _embedded(self, block: Tensor) -> Tensor:
        pixels = block.float() / 255 if block.dtype == torch.uint8 else block.float()
        whole = functional.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        features = self.network((whole.expand(-1, len(self.mean), -1, -1) - self.mean) / self.deviation)
        return functional.normalize(features.float()).cpu()


def given_encoder(folder: Path) -> GivenEncoder:
    """Return the encoder in a folder of Hugging Face, offline and from safetensors alone.

    Raises InputError, in one line, for a folder that `medlt.classify.folder` refuses.
    """
    try:
        spec = read_folder(folder)
        network = VisionModel(spec)
        load_model(network, folder)
    except InputError as error:
        raise InputError(str(error).replace("classifier.weights", "--encoder")) from None
    size = spec["config"].get("image_size", USUAL)
    mean, deviation = (torch.tensor(spec[name]).view(-1, 1, 1) for name in ("mean", "deviation"))
    return GivenEncoder(network.eval().requires_grad_(False), size if isinstance(size, int) else USUAL, mean, deviation)
