"""Fine-tuning of an autoencoder on radiographs: the whole autoencoder, or the decoder alone.

The loss is L1, plus the L1 of image gradients at several scales, which L1 alone blurs, plus optionally 1 - SSIM. If the
encoder is trained, too, a small KL term pulls the posterior to the unit normal (arXiv 2112.10752). With a frozen
encoder, latents do not change: caches of the source codec, and denoisers trained on them, stay valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medlt.diffusion.autoencoder import Reconstruction, fit_codec, made_codec, private_key, stacked
from medlt.diffusion.cache import Images
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.emphasis import gradient_error, gradient_errors
from medlt.files import digest, digest_tensors, write_json
from medlt.rng import batch_indices, torch_generator
from medlt.store import Store
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart, Training
from medlt.types import InputError

FORMAT = 1  # part of the key: increase it if the same settings would train other weights
TRAINING = Training(steps=1000, learning_rate=1e-5, batch_size=8, checkpoint_every=250)


@dataclass(frozen=True)
class ReconstructionLoss:
    """The loss above as loss(network, batch(step), step, part); batch and noise are functions of (seed, step)."""

    images: Images
    batch_size: int
    edge: float
    ssim: float
    kl_weight: float
    seed: int

    def batch(self, step: int) -> Tensor:
        """Return the images [B,1,H,W] of one step in [0,1], on the CPU."""
        return stacked(self.images, batch_indices(len(self.images), self.batch_size, step, self.seed, "vae"))

    def __call__(self, network: nn.Module, batch: Tensor, step: int, part: BatchPart) -> Tensor:
        x = _as_input(network, part.take(batch))
        out, divergence = network(x, torch_generator(self.seed, "vae", step), part)
        loss = (out - x).abs().mean() + self.edge * gradient_error(out, x) + self.kl_weight * divergence
        if self.ssim:
            from monai.losses import SSIMLoss

            loss = loss + self.ssim * SSIMLoss(spatial_dims=2)((out + 1) / 2, (x + 1) / 2)
        total: Tensor = loss
        return total

    def each(self, network: nn.Module, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        """Return the loss of each row [B] of a `Reconstruction`, as a medlt.training.protocols.RowLoss."""
        x = _as_input(network, stacked(self.images, rows))
        out, divergence, numbers = network.reconstruct(x, rng)  # type: ignore[operator]
        loss = (out - x).abs().flatten(1).mean(1) + self.edge * gradient_errors(out, x)
        loss = loss + self.kl_weight * divergence / numbers
        if self.ssim:
            from monai.losses import SSIMLoss

            loss = loss + self.ssim * SSIMLoss(spatial_dims=2, reduction="none")((out + 1) / 2, (x + 1) / 2).flatten()
        total: Tensor = loss
        return total


def _as_input(network: nn.Module, images: Tensor) -> Tensor:
    """Return images [B,1,H,W] in [0,1] as input of the network: with its channels, in [-1,1], on its device."""
    inner: Any = getattr(network, "module", network)
    channels = int(inner.autoencoder.config["in_channels"])
    return (images * 2 - 1).expand(-1, channels, -1, -1).to(next(network.parameters()).device)


def _evenly(images: Images, most: int = 64) -> np.ndarray:
    """Return at most `most` evenly spaced rows."""
    return np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)


def quality(codec: AutoencoderCodec, images: Images) -> dict[str, float]:
    """Return means over at most 64 evenly spaced images: l1, psnr (dB), ssim (7 px window)."""
    from skimage.metrics import structural_similarity

    values = []
    for i in _evenly(images):
        x = stacked(images, np.array([i]))
        back = codec.decode(codec.latents(codec.moments(x)))
        ssim = structural_similarity(x[0, 0].numpy(), back[0, 0].numpy(), data_range=1.0)
        mse = float((back - x).square().mean())
        values.append([float((back - x).abs().mean()), -10 * np.log10(max(mse, 1e-12)), float(ssim)])
    return dict(zip(("l1", "psnr", "ssim"), map(float, np.mean(values, 0)), strict=True))


def finetune_codec(
    source: Path, images: Images, *, contents: str, runtime: Runtime, store: Store, training: Training = TRAINING,
    decoder_only: bool = True, edge: float = 1.0, ssim: float = 0.0, kl_weight: float = 1e-6,
    validation: Images | None = None, tracker: Literal["tensorboard"] | None = None, private: PrivateFit | None = None,
    patients: Sequence[str] = (),
) -> AutoencoderCodec:  # fmt: skip
    """Train the autoencoder of a diffusers folder on `images`, dicts with `image` [1,H,W] in [0,1].

    Returns its moving average, an artifact of the kind "codec": a diffusers folder for `load_codec`. The store returns
    it if it exists, and a killed training continues. `contents` is a digest of the pixels of all images in order.
    training.json holds the quality before and after, on `validation` images (on `images` without them), and whether
    the encoder was trained. `private` trains privately instead, with `patients`, one for each image, as units; quality
    is then measured on `validation` images only. Raises InputError for a source that is not a codec, for fp16, in which
    the autoencoder of Stable Diffusion overflows, and for a training that diverged.
    """
    if runtime.precision == "fp16":
        raise InputError("an autoencoder overflows in fp16 and gives black images; train it in bf16 or fp32")
    codec = load_codec(source, runtime.device)
    seen = validation if validation is not None or private is not None else images
    key = {"made": "tuned", "format": FORMAT, "source": codec.digest, "contents": contents, "images": len(images),
           "training": training.digest(), "stop": training.last, "losses": [decoder_only, edge, ssim, kl_weight],
           "measured": None if seen is None else digest_tensors({"images": stacked(seen, _evenly(seen))}),
           "seed": runtime.seed, "precision": runtime.precision,
           "private": private_key(private, images, patients)}  # fmt: skip

    def build(folder: Path) -> None:
        record: dict[str, Any] = {"source": codec.digest, "encoder": "unchanged" if decoder_only else "trained",
                                  "steps": training.last} | _measured("before", codec, seen)  # fmt: skip
        network = Reconstruction(codec.network, decoder_only)
        loss = ReconstructionLoss(images, training.batch_size, edge, ssim, kl_weight, runtime.seed)
        options: dict[str, Any] = {"runtime": runtime, "folder": folder, "key": digest(key), "name": "codec",
                                   "picture": None if seen is None else _Reconstructions(seen)}  # fmt: skip
        if private is None:
            fit_codec(network, loss, training, tracker=tracker, **options)
        else:
            private(network, loss.each, patients, training=training, **options)
        tuned = AutoencoderCodec(network.autoencoder, runtime.device)
        _save(tuned.network, folder, record | _measured("after", tuned, seen))

    return made_codec(store, key, build, runtime, private)


def _save(network: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write the diffusers folder, without paths of this machine, and training.json."""
    network.register_to_config(_name_or_path="")
    network.save_pretrained(folder, safe_serialization=True)
    write_json(folder / "training.json", record)


def _measured(when: str, codec: AutoencoderCodec, images: Images | None) -> dict[str, dict[str, float]]:
    """Return the quality under the name `when`; {} without images. Raises InputError if it is not finite."""
    values = {} if images is None else quality(codec, images)
    if not np.isfinite(list(values.values())).all():
        raise InputError("the images of the tuned codec hold NaN or infinity; lower learning_rate")
    return {} if images is None else {when: values}


@dataclass(frozen=True)
class _Reconstructions:
    """Function from the network to a picture: four images above their reconstructions."""

    images: Images

    def __call__(self, network: nn.Module) -> Tensor:
        x = stacked(self.images, np.arange(min(4, len(self.images))))
        out, _ = network(_as_input(network, x), torch_generator("vae picture"), BatchPart())
        return torch.cat([x, (out.mean(1, keepdim=True).cpu() + 1) / 2])
