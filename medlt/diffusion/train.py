"""Training of the label-conditioned denoiser and of a small autoencoder, both resumable to the bit on a CPU.

Denoiser loss: mean squared error of the network's own parameterisation weighted by a clamped SNR (arXiv 2303.09556,
2202.00512), conditions dropped at random for classifier-free guidance (arXiv 2207.12598). Autoencoder loss: L1 and
a small pull of the posterior to the unit normal (arXiv 2112.10752).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from medlt import chance
from medlt.diffusion.autoencoder import AutoencoderLoss, autoencoder, save_codec
from medlt.diffusion.cache import Images
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.loop import fit
from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule, Prediction, target_of
from medlt.files import digest
from medlt.types import InputError

Accessor = Callable[[Sequence[str]], Tensor]
"""uids -> standardised latents float32 [len(uids),C,h,w]."""

Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


def snr_weight(a: Tensor, prediction: Prediction, low: float = 1.0, high: float = 5.0) -> Tensor:
    """Weight of the squared error that makes it clamp(SNR, low, high) on x0, for a = abar and SNR = a / (1 - a).

    `high` is min-SNR's gamma; `low` is the truncation of arXiv 2202.00512, without which the noisiest steps weigh
    nothing under v or x0, and those are where a network has to learn what the label says.
    """
    snr = a / (1 - a)
    unit = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction]
    return snr.clamp(low, high) / unit


@dataclass(frozen=True)
class NoisedLoss:
    """Weighted squared error on x0 [B,C,h,w] under conditions [B,...]; timesteps, noise and drops come from `draw`."""

    prediction: Prediction
    null: Tensor
    bf16: bool = False
    noise: NoiseSchedule = STABLE_DIFFUSION

    def __call__(self, net: nn.Module, x0: Tensor, condition: Tensor, drop: float, draw: torch.Generator) -> Tensor:
        t = torch.randint(0, self.noise.train_steps, (len(x0),), generator=draw)
        n = torch.randn(x0.shape, generator=draw)
        dropped = torch.rand(len(x0), generator=draw) < drop
        said = torch.where(dropped.reshape(-1, *[1] * self.null.ndim), self.null, condition)
        a = self.noise.abar()[t].reshape(-1, 1, 1, 1)
        x_t, target = a.sqrt() * x0 + (1 - a).sqrt() * n, target_of(x0, n, a, self.prediction)
        where = next(net.parameters()).device
        with torch.autocast(where.type, torch.bfloat16, enabled=self.bf16):
            out = net(x_t.to(where), t.to(where), said.to(where))
        error: Tensor = (out.float() - target.to(where)).pow(2).flatten(1).mean(1)
        return (error * snr_weight(a.flatten(), self.prediction).to(where)).mean()


@dataclass(frozen=True)
class LabelledLatents:
    """Latents found by uid, and their labels [N,K], NaN = unknown, in the order of `uids`. Validated at birth."""

    latents: Accessor
    uids: Sequence[str]
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.uids) != len(self.labels) or not len(self.uids):
            raise InputError(
                f"{len(self.uids)} uids but {len(self.labels)} label rows; give one row a uid, at least one"
            )

    def rows(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """x0 [B,C,h,w] and conditions [B,2K+1] at these positions."""
        said = torch.from_numpy(np.asarray(self.labels[rows], dtype=np.float32))
        return self.latents([self.uids[i] for i in rows]), LabelVector(said.shape[1])(said)

    def digest(self) -> str:
        """Names uids, labels and, by the first few, the latents."""
        first, _ = self.rows(np.arange(min(4, len(self.uids))))
        return digest(list(self.uids), np.asarray(self.labels, np.float32).tobytes(), first.numpy().tobytes())

    def loss(self, net: nn.Module, loss: NoisedLoss, batch: int) -> float:
        """Mean loss on at most 256 fixed rows, with noise and timesteps that never change; no condition dropped."""
        order = np.linspace(0, len(self.uids) - 1, min(256, len(self.uids))).astype(int)
        parts = [order[i : i + batch] for i in range(0, len(order), batch)]
        draws = [chance.generator("denoiser validation", i) for i in range(len(parts))]
        total = sum(
            float(loss(net, *self.rows(part), 0.0, draw)) * len(part) for part, draw in zip(parts, draws, strict=True)
        )
        return total / len(order)


def _network(data: LabelledLatents, width: int, levels: int, prediction: Prediction, seed: int) -> LabelUNet:
    """A LabelUNet for these latents, its first weights drawn from the seed."""
    x0, _ = data.rows(np.arange(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance.seed_of(seed, "denoiser weights"))
        return LabelUNet(x0.shape[1], np.shape(data.labels)[1], width, levels, prediction)


def train_denoiser(
    latents: Accessor, uids: Sequence[str], labels: np.ndarray, *, folder: Path,
    validation: tuple[Sequence[str], np.ndarray] | None = None, width: int = 64, levels: int = 2, steps: int = 3000,
    batch: int = 32, learning_rate: float = 3e-4, ema: float = 0.999, prediction: Prediction = "v_prediction",
    drop_condition: float = 0.1, precision: Literal["fp32", "bf16"] = "fp32", checkpoint_every: int = 500,
    seed: int = 0, device: str = "cpu", progress: Progress | None = None,
) -> LabelUNet:  # fmt: skip
    """Train a LabelUNet on `latents(uids)` under labels [N,K] (NaN = unknown); gives the EMA network.

    `folder` gets checkpoint.safetensors, history.parquet (loss, and validation loss at each checkpoint), and in the end
    model.safetensors and model.json. Called again it goes on from the checkpoint, also with more `steps`. Raises
    InputError when the folder holds another training. `precision` "bf16" runs the network under autocast, about 1.6
    times as fast on CPUs with bfloat16 units; weights stay fp32.
    """
    data = LabelledLatents(latents, uids, labels)
    net = _network(data, width, levels, prediction, seed)
    noised = NoisedLoss(prediction, net.backbone().condition.null, precision == "bf16")

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x0, said = data.rows(chance.batch_indices(len(uids), batch, step, seed, "denoiser"))
        return noised(model, x0, said, drop_condition, chance.generator(seed, "denoiser", step))

    held = LabelledLatents(latents, *validation) if validation is not None and len(validation[0]) else None
    key = digest(net.settings, [batch, learning_rate, ema, drop_condition, precision, seed], data.digest())
    fit(net, loss_of, steps=steps, learning_rate=learning_rate, ema=ema, folder=Path(folder), key=key, name="denoiser",
        checkpoint_every=checkpoint_every, device=device, progress=progress,
        evaluate=None if held is None else lambda model: held.loss(model, noised, batch))  # fmt: skip
    net.save(Path(folder))
    return net


def train_codec(
    images: Images, *, folder: Path, channels: int = 4, width: int = 32, levels: int = 3, steps: int = 600,
    batch: int = 16, learning_rate: float = 1e-3, ema: float = 0.99, kl_weight: float = 1e-3,
    checkpoint_every: int = 100, seed: int = 0, source: str = "", device: str = "cpu", progress: Progress | None = None,
) -> AutoencoderCodec:  # fmt: skip
    """A small AutoencoderKL trained on `images`, a dataset of dicts with `image` [1,H,W] in [0,1], saved in `folder`.

    `folder`/DIGEST becomes a diffusers folder that `load_codec` reads; it is loaded when it is there, and a killed
    training goes on from its checkpoint. `source` names the images (a manifest's digest). `width` channels at the
    latent size, half as many at each larger one.
    """
    key = digest([channels, width, levels, steps, batch, learning_rate, ema, kl_weight, seed, source, len(images)])
    finished = Path(folder) / key
    if not (finished / "training.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chance.seed_of(seed, "codec weights"))
            network = autoencoder(channels, width, levels)
        fit(network, AutoencoderLoss(images, batch, kl_weight, seed), steps=steps, learning_rate=learning_rate, ema=ema,
            folder=Path(folder) / f"{key}.training", key=key, checkpoint_every=checkpoint_every, device=device,
            name="codec", progress=progress)  # fmt: skip
        save_codec(network, images, finished, key)
    return load_codec(finished, device)
