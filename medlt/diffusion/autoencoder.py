"""The small autoencoder that medlt trains itself: its construction, its loss, its training and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medlt.diffusion.cache import Images
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.emphasis import PLAIN, Emphasis
from medlt.files import digest
from medlt.processes import Build
from medlt.rng import batch_indices, torch_generator
from medlt.store import Store
from medlt.training.batches import StepBatches
from medlt.training.loop import fit
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.training.settings import WHOLE, BatchPart, Training
from medlt.types import InputError

B = TypeVar("B")


def autoencoder(channels: int, width: int, levels: int) -> Any:
    """Return an untrained diffusers AutoencoderKL for one-channel images, with a factor of 2 ** (levels - 1).

    It has `width` channels at the latent resolution and half as many at each larger one, at least 8, because layers at
    full resolution cost most.
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(max(8, width >> (levels - 1 - i)) for i in range(levels)),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def stacked(images: Images, rows: np.ndarray) -> Tensor:
    """Return images [len(rows),1,H,W] of a data set of dicts."""
    return torch.stack([torch.as_tensor(images[int(i)]["image"], dtype=torch.float32) for i in rows])


def private_key(private: PrivateFit | None, images: Images, patients: Sequence[str]) -> str | None:
    """Return the digest of a private training's mechanism and of the patient of each image; None if not private.

    Raises InputError unless there is one patient per image.
    """
    if private is None:
        return None
    if len(patients) != len(images):
        raise InputError(f"private training: {len(patients)} patients for {len(images)} images; give one per image")
    return digest(private.digest, list(patients))


DECODER = ("decoder", "post_quant_conv")


class Reconstruction(nn.Module):
    """An AutoencoderKL or AutoencoderTiny whose forward encodes and decodes an image."""

    def __init__(self, autoencoder: Any, decoder_only: bool) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder.requires_grad_(not decoder_only)
        self.decoder_only = decoder_only
        for name in DECODER:
            if isinstance(part := getattr(autoencoder, name, None), nn.Module):
                part.requires_grad_(True)

    def forward(self, x: Tensor, rng: torch.Generator, part: BatchPart) -> tuple[Tensor, Tensor]:
        """Return reconstructions [B,c,H,W] of images x [B,c,H,W], both in [-1,1], and the mean divergence, a scalar.

        The divergence is that of the posterior from the unit normal, per latent number.
        """
        out, divergence, numbers = self.reconstruct(x, rng, part)
        return out, divergence.mean() / numbers

    def reconstruct(self, x: Tensor, rng: torch.Generator, part: BatchPart = WHOLE) -> tuple[Tensor, Tensor, int]:
        """Return the reconstructions, the divergence of each row [B], and the number of latent numbers it sums over."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            encoded = self.autoencoder.encode(x)
        if hasattr(encoded, "latents"):
            return self.autoencoder.decode(encoded.latents).sample, x.new_zeros(len(x)), 1
        posterior = encoded.latent_dist
        shape = (len(x) * part.of, *posterior.mean.shape[1:])
        noise = part.take(torch.randn(shape, generator=rng)).to(posterior.mean)
        out = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        return out, posterior.kl(), posterior.mean[0].numel()


@dataclass(frozen=True)
class AutoencoderLoss:
    """The errors of `emphasis`, L1 if it is plain, plus kl_weight times the posterior's divergence per latent number.

    The divergence is from the unit normal. Call it as loss(network, batch(step), step, part) with a `Reconstruction`.
    The batch and the posterior's noise are functions of (seed, step).
    """

    images: Images
    batch_size: int
    kl_weight: float
    seed: int
    emphasis: Emphasis = PLAIN

    def batch(self, step: int) -> tuple[Tensor, np.ndarray]:
        """Return the images [B,1,H,W] of one step in [0,1], on the CPU, and their rows."""
        rows = batch_indices(len(self.images), self.batch_size, step, self.seed, "codec")
        return stacked(self.images, rows), rows

    def __call__(
        self, network: nn.Module, batch: tuple[Tensor, np.ndarray], step: int, part: BatchPart = WHOLE
    ) -> Tensor:
        x, rows = _as_input(network, part.take(batch[0])), part.take(batch[1])
        out, divergence = network(x, torch_generator(self.seed, "codec", step), part)
        loss: Tensor = self.emphasis.errors(out, x, rows).mean() + self.kl_weight * divergence
        return loss

    def each(self, network: nn.Module, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        """Return the loss of each row [B], as a medlt.training.protocols.RowLoss."""
        x = _as_input(network, stacked(self.images, rows))
        out, divergence, numbers = network.reconstruct(x, rng)  # type: ignore[operator]
        loss: Tensor = self.emphasis.errors(out, x, rows) + self.kl_weight * divergence / numbers
        return loss


def _as_input(network: nn.Module, images: Tensor) -> Tensor:
    """Return images in [0,1] as input of the network: in [-1,1], on its device."""
    return (images * 2 - 1).to(next(network.parameters()).device)


class CodecLoss(Protocol[B]):
    """A loss of a `Reconstruction` whose batches can be made before they are used."""

    def batch(self, step: int, /) -> B: ...

    def __call__(self, network: nn.Module, batch: B, step: int, part: BatchPart, /) -> Tensor: ...


def fit_codec(network: Reconstruction, loss: CodecLoss[B], training: Training, **options: Any) -> None:
    """Call `medlt.training.loop.fit`, and read the images of the next step meanwhile."""
    with StepBatches(loss.batch, training.last) as batches:
        fit(network, lambda model, step, part: loss(model, batches(step), step, part), training, **options)


def save_codec(network: Any, images: Images | None, folder: Path) -> None:
    """Scale latents to unit sd, and write the diffusers folder that `load_codec` reads.

    Without `images` the scaling factor is 1, because a spread measured on patients' images would disclose them.
    """
    if images is not None:
        with torch.no_grad():
            few = np.linspace(0, len(images) - 1, min(64, len(images))).astype(int)
            sd = float(network.encode(stacked(images, few) * 2 - 1).latent_dist.mean.std())
        network.register_to_config(scaling_factor=1.0 / max(sd, 1e-6))
    network.save_pretrained(folder, safe_serialization=True)


def made_codec(
    store: Store, key: Mapping[str, Any], build: Build, runtime: Runtime, private: PrivateFit | None
) -> AutoencoderCodec:
    """Return the codec of this key from the store. Build it if the store does not have it.

    A private training is added to the ledger in both cases.
    """
    made = store.make("codec", key, build, joint=True)
    if private is not None:
        private.account(made.path("mechanism.json"))
    return load_codec(made.folder, runtime.device)
