"""Training of the label-conditioned denoiser and of a small autoencoder, both resumable to the bit on a CPU.

Denoiser loss: mean squared error of the network's own parameterisation with min-SNR weights, gamma 5 (arXiv 2303.09556,
Eq. 5-7), conditions dropped at random for classifier-free guidance (arXiv 2207.12598). Autoencoder loss: L1 and
a small pull of the posterior to the unit normal (arXiv 2112.10752).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medlt import chance
from medlt.diffusion.cache import Images
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.denoiser import LabelUNet, Prediction, target_of
from medlt.diffusion.loop import fit
from medlt.diffusion.schedulers import TRAIN_STEPS, abar
from medlt.files import digest, write_json
from medlt.types import InputError

Accessor = Callable[[Sequence[str]], Tensor]
"""uids -> standardised latents float32 [len(uids),C,h,w]."""

Progress = Callable[[str, int, int], None]


def snr_weight(a: Tensor, prediction: Prediction, gamma: float = 5.0) -> Tensor:
    """Weight of the squared error that makes it min(SNR, gamma) on x0, for a = abar and SNR = a / (1 - a)."""
    snr = a / (1 - a)
    unit = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction]
    return snr.clamp(max=gamma) / unit


def _noised_loss(
    net: nn.Module, x0: Tensor, labels: Tensor, drop: float, prediction: Prediction, draw: torch.Generator
) -> Tensor:
    """Weighted squared error on x0 [B,C,h,w] at timesteps, noise and dropped conditions drawn from `draw`."""
    t = torch.randint(0, TRAIN_STEPS, (len(x0),), generator=draw)
    n = torch.randn(x0.shape, generator=draw)
    dropped = torch.rand(len(x0), generator=draw) < drop
    a = abar()[t].reshape(-1, 1, 1, 1)
    x_t, target = a.sqrt() * x0 + (1 - a).sqrt() * n, target_of(x0, n, a, prediction)
    where = next(net.parameters()).device
    out = net(x_t.to(where), t.to(where), labels.to(where), dropped.to(where))
    error: Tensor = (out - target.to(where)).pow(2).flatten(1).mean(1)
    return (error * snr_weight(a.flatten(), prediction).to(where)).mean()


def _validation(
    latents: Accessor, uids: Sequence[str], labels: Tensor, batch: int, prediction: Prediction
) -> Callable[[nn.Module], float]:
    """The loss on at most 256 fixed images, with noise and timesteps that never change; no condition dropped."""
    uids, labels = uids[:256], labels[:256]

    def evaluate(net: nn.Module) -> float:
        total = 0.0
        for start in range(0, len(uids), batch):
            x0 = latents(uids[start : start + batch])
            draw = chance.generator("denoiser validation", start)
            part = _noised_loss(net, x0, labels[start : start + batch], 0.0, prediction, draw)
            total += float(part) * len(x0)
        return total / len(uids)

    return evaluate


def train_denoiser(
    latents: Accessor,
    uids: Sequence[str],
    labels: np.ndarray,
    *,
    folder: Path,
    validation: tuple[Sequence[str], np.ndarray] | None = None,
    width: int = 64,
    levels: int = 2,
    steps: int = 3000,
    batch: int = 32,
    learning_rate: float = 3e-4,
    ema: float = 0.999,
    prediction: Prediction = "v_prediction",
    drop_condition: float = 0.1,
    checkpoint_every: int = 500,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> LabelUNet:
    """Train a LabelUNet on `latents(uids)` under labels [N,K] (NaN = unknown); gives the EMA network.

    `folder` gets checkpoint.safetensors, history.parquet (loss, and validation loss at each checkpoint), and in the end
    model.safetensors and model.json. Called again it goes on from the checkpoint, also with more `steps`. Raises
    InputError when the folder holds another training.
    """
    truth = torch.as_tensor(np.asarray(labels), dtype=torch.float32)
    if len(uids) != len(truth) or not len(uids):
        raise InputError(f"{len(uids)} uids but {len(truth)} label rows to train a denoiser on; give one row a uid")
    peek = latents(uids[:4])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance.seed_of(seed, "denoiser weights"))
        net = LabelUNet(peek.shape[1], truth.shape[1], width, levels, prediction)

    def loss_of(model: nn.Module, step: int) -> Tensor:
        rows = chance.batch_indices(len(uids), batch, step, seed, "denoiser")
        x0 = latents([uids[i] for i in rows])
        draw = chance.generator(seed, "denoiser", step)
        return _noised_loss(model, x0, truth[torch.from_numpy(rows)], drop_condition, prediction, draw)

    key = digest(net.settings, [batch, learning_rate, ema, drop_condition, seed], list(uids), truth.numpy().tobytes(),
                 peek.numpy().tobytes())  # fmt: skip
    evaluate = None
    if validation is not None and len(validation[0]):
        known = torch.as_tensor(np.asarray(validation[1]), dtype=torch.float32)
        evaluate = _validation(latents, validation[0], known, batch, prediction)
    fit(net, loss_of, steps=steps, learning_rate=learning_rate, ema=ema, folder=Path(folder), key=key, name="denoiser",
        checkpoint_every=checkpoint_every, evaluate=evaluate, device=device, progress=progress)  # fmt: skip
    net.save(Path(folder))
    return net


def autoencoder(channels: int, width: int, levels: int) -> Any:
    """An untrained diffusers AutoencoderKL for one-channel images; the image shrinks by 2 ** (levels - 1).

    `width` channels at the latent size, half as many at each larger size and at least 8: the full-size layers cost most.
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


def _batch_of(images: Images, rows: np.ndarray) -> Tensor:
    return torch.stack([torch.as_tensor(images[int(i)]["image"], dtype=torch.float32) for i in rows])


def _save_codec(network: Any, images: Images, folder: Path, key: str) -> None:
    """Scale latents to unit sd, and move the finished diffusers folder into place in one rename."""
    with torch.no_grad():
        few = np.linspace(0, len(images) - 1, min(64, len(images))).astype(int)
        sd = float(network.encode(_batch_of(images, few) * 2 - 1).latent_dist.mean.std())
    network.register_to_config(scaling_factor=1.0 / max(sd, 1e-6))
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    network.save_pretrained(fresh, safe_serialization=True)
    write_json(fresh / "training.json", {"key": key})
    fresh.rename(folder)


def train_codec(
    images: Images,
    *,
    folder: Path,
    channels: int = 4,
    width: int = 32,
    levels: int = 3,
    steps: int = 600,
    batch: int = 16,
    learning_rate: float = 1e-3,
    ema: float = 0.99,
    kl_weight: float = 1e-6,
    seed: int = 0,
    source: str = "",
    device: str = "cpu",
    progress: Progress | None = None,
) -> AutoencoderCodec:
    """A small AutoencoderKL trained on `images`, a dataset of dicts with `image` [1,H,W] in [0,1], saved in `folder`.

    `folder`/codec becomes a diffusers folder that `load_codec` reads; it is loaded when it is there, and a killed
    training goes on from its checkpoint. `source` names the images (a manifest's digest).
    """
    key = digest([channels, width, levels, steps, batch, learning_rate, ema, kl_weight, seed, source, len(images)])
    finished = Path(folder) / key
    if (finished / "training.json").is_file():
        return load_codec(finished, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance.seed_of(seed, "codec weights"))
        network = autoencoder(channels, width, levels)

    def loss_of(model: nn.Module, step: int) -> Tensor:
        where = next(model.parameters()).device
        x = _batch_of(images, chance.batch_indices(len(images), batch, step, seed, "codec")) * 2 - 1
        posterior = network.encode(x.to(where)).latent_dist
        draw = torch.randn(posterior.mean.shape, generator=chance.generator(seed, "codec", step))
        out = network.decode(posterior.mean + posterior.std * draw.to(where)).sample
        loss: Tensor = (out - x.to(where)).abs().mean() + kl_weight * posterior.kl().mean()
        return loss

    fit(network, loss_of, steps=steps, learning_rate=learning_rate, ema=ema, folder=Path(folder) / f"{key}.training",
        key=key, checkpoint_every=max(100, steps // 4), device=device, name="codec", progress=progress)  # fmt: skip
    _save_codec(network, images, finished, key)
    return load_codec(finished, device)
