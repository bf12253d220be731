"""Tiny implementations of every protocol, for unit tests, and small stand-ins for data and weights that are not there.

Each implementation is exact where a trained network is only approximate, so that a test can state the expected result.
`write_mimic_cxr_jpg` and `tiny_stable_diffusion` write folders in a published layout, to try medlt on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medlt.data.phantom.mimic_cxr_jpg import write_mimic_cxr_jpg as write_mimic_cxr_jpg
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.labels import LabelVector
from medlt.rng import numpy_generator
from medlt.types import CheckResult, Denoiser, InputError, Signal


class IdentityCodec:
    """A lossless codec: latents are the image's pixels, each `factor` x `factor` block moved to the channels.

    The standard deviation is `spread` everywhere, so that a test can distinguish sampled latents from their mode.
    """

    def __init__(self, factor: int = 1, spread: float = 0.0, scale: float = 1.0) -> None:
        self.factor = factor
        self.channels = factor * factor
        self.spread = spread
        self.scale = scale
        self.digest = f"identity-{factor}-{spread}-{scale}"

    def moments(self, images: Tensor) -> Tensor:
        """Return pixels and spread, stacked, [B,2C,H/factor,W/factor]."""
        if images.shape[-2] % self.factor or images.shape[-1] % self.factor:
            raise InputError(f"images of {tuple(images.shape[-2:])} px; resize to a multiple of {self.factor} px")
        mean = functional.pixel_unshuffle(images, self.factor)
        return torch.cat([mean, torch.full_like(mean, self.spread)], 1)

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return (mean + sd * noise) * scale."""
        mean, sd = moments.chunk(2, 1)
        return (mean if noise is None else mean + sd * noise) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels, clipped to [0,1]."""
        return functional.pixel_shuffle(latents / self.scale, self.factor).clamp(0, 1)


@dataclass(frozen=True)
class Mixture:
    """Exact denoiser of a Gaussian mixture: the closed-form reference for samplers and guidance.

    x0 ~ sum_k weights_k N(means_k, std^2 I), weights [K], means [K,D]; x_t = sqrt(abar) x0 + sqrt(1 - abar) n [B,D].
    Given the component, E[x0 | x_t] = m + sqrt(abar) std^2 / var (x_t - sqrt(abar) m), var = abar std^2 + 1 - abar.
    """

    weights: Tensor
    means: Tensor
    std: float
    abar: Tensor

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        a = self.abar[t]
        var = a * self.std**2 + 1 - a
        gap = x_t[:, None] - a.sqrt() * self.means
        resp = (self.weights.log() - gap.pow(2).sum(-1) / (2 * var)).softmax(-1)
        return (resp[..., None] * (self.means + a.sqrt() * self.std**2 / var * gap)).sum(1)

    def fractions(self, x: Tensor) -> Tensor:
        """Return the share of x [B,D] nearest to each mean, [K]."""
        nearest = torch.cdist(x, self.means.to(x)).argmin(1)
        return nearest.bincount(minlength=len(self.means)) / len(x)


def constant_denoiser(x0: Tensor) -> Denoiser:
    """Return a denoiser whose estimate is `x0` for every input."""
    return lambda x_t, t: x0


class Answer(nn.Module):
    """A network that calls the function answer(x_t, t [B], condition)."""

    def __init__(self, answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the function's value."""
        return self.answer(x_t, t, condition)


def label_backbone(answer: Callable[[Tensor, Tensor, Tensor], Tensor], findings: int, **changes: Any) -> Backbone:
    """Return a Backbone conditioned on label vectors whose network is `answer`; it predicts x0 unless changed."""
    settings: dict[str, Any] = {"prediction": "sample", "channels": 1, "digest": "answer"} | changes
    return Backbone(Answer(answer), LabelVector(findings), **settings)


def constant_signal(value: float) -> Signal:
    """Return a signal that is `value` everywhere; its gradient is 0."""
    return lambda x0, t: x0.flatten(1).sum(1) * 0 + value


def always(check: str, passed: bool) -> Any:
    """Return a check that gives the same result for every image."""

    def validate(batch: Any) -> Sequence[CheckResult]:
        return [
            CheckResult(check, str(uid), float(passed), 1.0, passed, f"always {passed}") for uid in batch.rows.index
        ]

    return validate


@dataclass(frozen=True)
class Discs:
    """A data set of `n` smooth discs on a gradient, {"uid", "image" [1,size,size] in [0,1]}, drawn on access."""

    n: int
    size: int = 32
    seed: int = 0

    @property
    def uids(self) -> tuple[str, ...]:
        """Return disc-0, disc-1, ..."""
        return tuple(f"disc-{i}" for i in range(self.n))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        x, y, radius, light = numpy_generator(self.seed, "disc", index).uniform(
            [0.3, 0.3, 0.1, 0.4], [0.7, 0.7, 0.3, 0.8]
        )
        axis = torch.linspace(0, 1, self.size)
        distance = ((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2).sqrt()
        image = 0.2 * axis[:, None] + light * torch.sigmoid((radius - distance) * 40)
        return {"uid": self.uids[index], "image": image.float()[None].clamp(0, 1)}


def tiny_stable_diffusion(folder: str | Path, seed: int = 0) -> Path:
    """Write an untrained Stable Diffusion 1.5 of 1.2 million weights as a diffusers folder, and return the folder.

    Every file is there, codec and tokenizer included, with random weights. The codec is 4 times smaller than the image.
    Raises InputError for a folder that exists.
    """
    from medlt.diffusion.stable.untrained import untrained

    sizes: dict[str, Any] = {"widths": (32, 64), "layers": 1, "text_width": 32, "text_layers": 1, "vae": (16, 32, 32)}
    return untrained(Path(folder), seed=seed, **sizes)


def tiny_autoencoder_kl(seed: int = 0, **changes: Any) -> Any:
    """Return a small untrained diffusers AutoencoderKL: 3 channels, 4 latent channels, factor 4."""
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(**settings | changes).eval()


def tiny_autoencoder_tiny(seed: int = 0, **changes: Any) -> Any:
    """Return a small untrained diffusers AutoencoderTiny: 3 channels, 4 latent channels, factor 4."""
    from diffusers import AutoencoderTiny

    settings: dict[str, Any] = {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderTiny(**settings | changes).eval()
    with torch.no_grad():  # the images of an untrained decoder are so flat that checks treat them as blank
        network.decoder.layers[-1].weight *= 20
    return network
