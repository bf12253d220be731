"""Fine-tuning of an autoencoder on radiographs: the whole of it, or its decoder alone.

Loss: L1, plus the L1 of image gradients at several scales, which L1 alone blurs, plus 1 - SSIM if asked for, plus,
where the encoder is trained too, a small pull of the posterior to the unit normal (arXiv 2112.10752). With the encoder
frozen an image's latents stay what they were: caches made with the source codec, and denoisers trained on them, go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medlt import chance
from medlt.diffusion.autoencoder import require_patients, stacked
from medlt.diffusion.cache import Images
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.loop import WHOLE, Part, Progress, Training, fit
from medlt.files import digest, whole_folder, write_json
from medlt.types import InputError, PrivateFit

TRAINING = Training(steps=1000, learning_rate=1e-5, batch=8, checkpoint_every=250)
DECODER = ("decoder", "post_quant_conv")


class Reconstruction(nn.Module):
    """An AutoencoderKL or AutoencoderTiny as one forward: image in, image out."""

    def __init__(self, autoencoder: Any, decoder_only: bool) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder.requires_grad_(not decoder_only)
        self.decoder_only = decoder_only
        for name in DECODER:
            if isinstance(part := getattr(autoencoder, name, None), nn.Module):
                part.requires_grad_(True)

    def forward(self, x: Tensor, draw: torch.Generator, part: Part) -> tuple[Tensor, Tensor]:
        """Images [B,c,H,W] of images x [B,c,H,W], both in [-1,1], and the posterior's divergence, a scalar."""
        out, divergence, numbers = self.answer(x, draw, part)
        return out, divergence.mean() / numbers

    def answer(self, x: Tensor, draw: torch.Generator, part: Part = WHOLE) -> tuple[Tensor, Tensor, int]:
        """The images, each row's divergence [B], and of how many numbers a latent it is the sum."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            answer = self.autoencoder.encode(x)
        if hasattr(answer, "latents"):
            return self.autoencoder.decode(answer.latents).sample, x.new_zeros(len(x)), 1
        posterior = answer.latent_dist
        shape = (len(x) * part.of, *posterior.mean.shape[1:])
        noise = part.take(torch.randn(shape, generator=draw)).to(posterior.mean)
        out = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        return out, posterior.kl(), posterior.mean[0].numel()


def gradient_error(out: Tensor, x: Tensor, scales: int = 3) -> Tensor:
    """Mean L1 between the finite differences of two image batches [B,c,H,W], over `scales` halvings of their size."""
    return torch.stack([error.mean() for error in _gradient_errors(out, x, scales)]).mean()


def gradient_errors(out: Tensor, x: Tensor, scales: int = 3) -> Tensor:
    """The same of each image by itself, [B]."""
    return torch.stack([error.flatten(1).mean(1) for error in _gradient_errors(out, x, scales)]).mean(0)


def _gradient_errors(out: Tensor, x: Tensor, scales: int) -> list[Tensor]:
    errors = []
    for _ in range(scales):
        errors += [(out.diff(dim=dim) - x.diff(dim=dim)).abs() for dim in (2, 3)]
        out, x = functional.avg_pool2d(out, 2), functional.avg_pool2d(x, 2)
    return errors


@dataclass(frozen=True)
class ReconstructionLoss:
    """Called as loss(network, step, part); batch and noise are functions of (seed, step)."""

    images: Images
    batch: int
    edge: float
    ssim: float
    kl_weight: float
    seed: int

    def __call__(self, network: nn.Module, step: int, part: Part) -> Tensor:
        rows = part.take(chance.batch_indices(len(self.images), self.batch, step, self.seed, "vae"))
        x = _shown(network, stacked(self.images, rows))
        out, divergence = network(x, chance.generator(self.seed, "vae", step), part)
        loss = (out - x).abs().mean() + self.edge * gradient_error(out, x) + self.kl_weight * divergence
        if self.ssim:
            from monai.losses import SSIMLoss

            loss = loss + self.ssim * SSIMLoss(spatial_dims=2)((out + 1) / 2, (x + 1) / 2)
        total: Tensor = loss
        return total

    def each(self, network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        """The same of each row by itself [B]: a medlt.types.RowLoss, of a `Reconstruction`."""
        x = _shown(network, stacked(self.images, rows))
        out, divergence, numbers = network.answer(x, draw)  # type: ignore[operator]
        loss = (out - x).abs().flatten(1).mean(1) + self.edge * gradient_errors(out, x)
        loss = loss + self.kl_weight * divergence / numbers
        if self.ssim:
            from monai.losses import SSIMLoss

            loss = loss + self.ssim * SSIMLoss(spatial_dims=2, reduction="none")((out + 1) / 2, (x + 1) / 2).flatten()
        total: Tensor = loss
        return total


def _shown(network: nn.Module, images: Tensor) -> Tensor:
    """Images [B,1,H,W] in [0,1] as the network sees them: its channels, [-1,1], its device."""
    held: Any = getattr(network, "module", network)
    channels = int(held.autoencoder.config["in_channels"])
    return (images * 2 - 1).expand(-1, channels, -1, -1).to(next(network.parameters()).device)


def quality(codec: AutoencoderCodec, images: Images, most: int = 64) -> dict[str, float]:
    """Means over at most `most` evenly spaced images: l1, psnr (dB), ssim (7 px window)."""
    from skimage.metrics import structural_similarity

    rows = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)
    found = []
    for i in rows:
        x = stacked(images, np.array([i]))
        back = codec.decode(codec.latents(codec.moments(x)))
        ssim = structural_similarity(x[0, 0].numpy(), back[0, 0].numpy(), data_range=1.0)
        mse = float((back - x).square().mean())
        found.append([float((back - x).abs().mean()), -10 * np.log10(max(mse, 1e-12)), float(ssim)])
    return dict(zip(("l1", "psnr", "ssim"), map(float, np.mean(found, 0)), strict=True))


def _save(codec: AutoencoderCodec, folder: Path, told: dict[str, Any]) -> None:
    """The diffusers folder and training.json, moved into place in one rename."""
    network: Any = codec.network
    network.register_to_config(_name_or_path="")
    with whole_folder(folder) as fresh:
        network.save_pretrained(fresh, safe_serialization=True)
        write_json(fresh / "training.json", told)


def finetune_codec(
    source: Path, images: Images, *, folder: Path, training: Training = TRAINING, decoder_only: bool = True,
    edge: float = 1.0, ssim: float = 0.0, kl_weight: float = 1e-6, held: Images | None = None, name_of_images: str = "",
    tracker: Literal["tensorboard"] | None = None, seed: int = 0, device: str = "cpu", progress: Progress | None = None,
    private: PrivateFit | None = None, patients: Sequence[str] = (),
) -> AutoencoderCodec:  # fmt: skip
    """Train the autoencoder of a diffusers folder on `images`, dicts with `image` [1,H,W] in [0,1]; gives its EMA.

    `folder`/DIGEST becomes a diffusers folder for `load_codec`; it is loaded when it is there, and a killed training
    goes on. Its training.json tells the quality on `held` images (on `images` without them) before and after, and
    whether the encoder is the source's. `name_of_images` names the images' content (a manifest's digest). `private`
    takes the place of the loop, with `patients`, one an image, as units; it is measured on `held` images or not at all.
    Raises InputError for a source that is no codec, for fp16, in which Stable Diffusion's autoencoder overflows, and
    for a training that diverged.
    """
    if training.precision == "fp16":
        raise InputError("an autoencoder overflows in fp16 and gives black images; train it in bf16 or fp32")
    codec, seen = load_codec(source), held if held is not None or private is not None else images
    settings = [decoder_only, edge, ssim, kl_weight, seed, name_of_images, len(images)]
    key = digest(codec.digest, training.digest(), settings if private is None else [*settings, "private"])
    finished = Path(folder) / digest(key, training.steps, training.last)
    if private is not None or not (finished / "training.json").is_file():
        told = {"source": codec.digest, "encoder": "unchanged" if decoder_only else "trained", "steps": training.last}
        before = {"before": quality(codec, seen)} if seen is not None else {}
        network = Reconstruction(codec.network, decoder_only)
        loss = ReconstructionLoss(images, training.batch, edge, ssim, kl_weight, seed)
        name = "vae" if private is None else "codec"  # as the ledger of a run has it
        shown: dict[str, Any] = {"folder": Path(folder) / f"{key}.training", "key": key, "name": name,
                                 "picture": None if seen is None else _Shown(seen)}  # fmt: skip
        if private is None:
            fit(network, loss, training, tracker=tracker, device=device, progress=progress, **shown)
        else:  # also when it is finished: the ledger learns of it then
            private(network, loss.each, require_patients(patients, images), training=asdict(training), **shown)
        tuned = AutoencoderCodec(network.autoencoder)
        after = {"after": _finite(quality(tuned, seen))} if seen is not None else {}
        if not (finished / "training.json").is_file():
            _save(tuned, finished, {**told, **before, **after})
    return load_codec(finished, device)


def _finite(found: dict[str, float]) -> dict[str, float]:
    """The same. Raises InputError for a value that is no number."""
    if not np.isfinite(list(found.values())).all():
        raise InputError("the tuned codec's images hold values that are no numbers; lower the learning rate")
    return found


@dataclass(frozen=True)
class _Shown:
    """Four images above what the network makes of them."""

    images: Images

    def __call__(self, network: nn.Module) -> Tensor:
        x = stacked(self.images, np.arange(min(4, len(self.images))))
        out, _ = network(_shown(network, x), chance.generator("vae picture"), Part())
        return torch.cat([x, (out.mean(1, keepdim=True).cpu() + 1) / 2])
