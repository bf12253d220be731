"""The codec of pixel diffusion: latents are the pixels themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medlt.files import digest
from medlt.types import InputError


class PixelCodec:
    """A lossless codec: latents are the pixels in [-1,1], each `patch` x `patch` block moved to the channels.

    See medlt.types.Codec. channels = patch ** 2, factor = patch; the standard deviation of the moments is 0.
    """

    def __init__(self, patch: int, device: str | torch.device) -> None:
        self.factor, self.channels, self.device = patch, patch * patch, torch.device(device)
        self.digest = digest("pixels", patch)

    def moments(self, images: Tensor) -> Tensor:
        """Return pixels in [-1,1] and zeros, stacked, [B,2C,H/patch,W/patch], of images [B,1,H,W] in [0,1].

        Raises InputError if the patch does not divide H and W.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"images of {height}x{width} px do not fit codec.patch; resize to a multiple of {self.factor} px"
            )
        mean = functional.pixel_unshuffle(images.to("cpu", torch.float32) * 2 - 1, self.factor)
        return torch.cat([mean, torch.zeros_like(mean)], 1)

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return mean + sd * noise, [B,C,h,w]; without `noise` the mean."""
        mean, sd = moments.chunk(2, 1)
        return mean if noise is None else mean + sd * noise

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B,1,H,W] in [0,1], on the CPU. The image of a non-finite latent is not finite."""
        return self.picture(latents).float().cpu().contiguous()

    def picture(self, latents: Tensor, checkpointed: bool = False) -> Tensor:
        """Decode as `decode` does, differentiable in the latents, on the codec's device; nothing is recomputed."""
        return ((functional.pixel_shuffle(latents.to(self.device), self.factor) + 1) / 2).clamp(0, 1)
