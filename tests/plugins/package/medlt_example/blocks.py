"""A codec without a network: the pixels of each block become the channels of one latent pixel."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medlt.config import CodecConfig
from medlt.diffusion.parts import CodecParts
from medlt.plugins import CodecPlugin


class BlocksSettings(CodecConfig):
    """Pixels of blocks as channels; nothing is lost."""

    side: int = Field(4, ge=1, description="side of a block, pixels; the image size must be a multiple of it")


class Blocks:
    """The codec. `digest` names it in the keys of everything that is made with it."""

    def __init__(self, settings: BlocksSettings, parts: CodecParts) -> None:
        self.factor, self.channels = settings.side, settings.side**2
        self.digest = f"blocks-{settings.side}"

    def moments(self, images: Tensor) -> Tensor:
        """Return the pixels as mean, and a standard deviation of 0."""
        mean = functional.pixel_unshuffle(images, self.factor)
        return torch.cat([mean, torch.zeros_like(mean)], 1)

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the mean."""
        return moments.chunk(2, 1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels, clipped to [0,1]."""
        return functional.pixel_shuffle(latents, self.factor).clamp(0, 1)


PLUGIN = CodecPlugin(BlocksSettings, Blocks, private=True)
