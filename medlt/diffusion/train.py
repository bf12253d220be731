"""Training from nothing of the label-conditioned denoiser and of a small autoencoder.

The denoiser is trained as any backbone is (medlt.diffusion.finetune), with the SNR weight truncated from below as well
(arXiv 2202.00512). Autoencoder loss: L1 and a small pull of the posterior to the unit normal (arXiv 2112.10752).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medlt import chance
from medlt.diffusion.autoencoder import AutoencoderLoss, autoencoder, require_patients, save_codec
from medlt.diffusion.cache import Images
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.finetune import Accessor, LabelledLatents, Objective, train_backbone
from medlt.diffusion.labels import LabelNetwork, LabelUNet
from medlt.diffusion.loop import Progress, Training, fit
from medlt.diffusion.noise import Prediction
from medlt.files import digest
from medlt.types import PrivateFit


def new_network(
    family: type[LabelNetwork], data: LabelledLatents, seed: int, settings: Mapping[str, Any]
) -> LabelNetwork:
    """An untrained network for these latents and findings, its weights drawn from the seed.

    `settings` are the family's own beside channels and findings.
    """
    x0, _ = data.rows(np.arange(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance.seed_of(seed, "denoiser weights"))
        return family(channels=x0.shape[1], findings=np.shape(data.labels)[1], **settings)


def train_denoiser(
    latents: Accessor, uids: Sequence[str], labels: np.ndarray, *, folder: Path,
    family: type[LabelNetwork] = LabelUNet, settings: Mapping[str, Any] | None = None,
    validation: tuple[Sequence[str], np.ndarray] | None = None, width: int = 64, levels: int = 2, steps: int = 3000,
    batch: int = 32, learning_rate: float = 3e-4, ema: float = 0.999, prediction: Prediction = "v_prediction",
    drop_condition: float = 0.1, precision: Literal["fp32", "bf16", "fp16"] = "fp32", checkpoint_every: int = 500,
    seed: int = 0, device: str = "cpu", progress: Progress | None = None,
) -> LabelNetwork:  # fmt: skip
    """Train a label-conditional network on `latents(uids)` under labels [N,K] (NaN = unknown); gives the EMA network.

    `settings` are the family's own beside channels, findings and prediction; without them `width` and `levels`.
    `folder` gets what `medlt.diffusion.finetune.train_backbone` writes and in the end model.safetensors and model.json.
    Called again it goes on from the checkpoint, also with more `steps`. Raises InputError when the folder holds another
    training. `precision` "bf16" runs the network under autocast, about 1.6 times as fast on CPUs with bfloat16 units;
    weights stay fp32.
    """
    data = LabelledLatents(latents, uids, labels)
    own = {"width": width, "levels": levels} if settings is None else settings
    net = new_network(family, data, seed, {**own, "prediction": prediction})
    held = LabelledLatents(latents, *validation) if validation is not None and len(validation[0]) else None
    training = Training(steps=steps, learning_rate=learning_rate, batch=batch, ema=ema, precision=precision,
                        checkpoint_every=checkpoint_every)  # fmt: skip
    train_backbone(net.backbone(), data, folder=Path(folder), training=training, validation=held, seed=seed,
                   objective=Objective(drop=drop_condition, low=1.0), device=device, progress=progress)  # fmt: skip
    net.save(Path(folder))
    return net


def train_codec(
    images: Images, *, folder: Path, channels: int = 4, width: int = 32, levels: int = 3, steps: int = 600,
    batch: int = 16, learning_rate: float = 1e-3, ema: float = 0.99, kl_weight: float = 1e-3,
    checkpoint_every: int = 100, seed: int = 0, source: str = "", device: str = "cpu", progress: Progress | None = None,
    private: PrivateFit | None = None, patients: Sequence[str] = (),
) -> AutoencoderCodec:  # fmt: skip
    """A small AutoencoderKL trained on `images`, a dataset of dicts with `image` [1,H,W] in [0,1], saved in `folder`.

    `folder`/DIGEST becomes a diffusers folder that `load_codec` reads; it is loaded when it is there, and a killed
    training goes on from its checkpoint. `source` names the images (a manifest's digest). `width` channels at the
    latent size, half as many at each larger one. `private` takes the place of the loop, with `patients`, one an image,
    as units; latents then keep the network's own scale (`save_codec`).
    """
    told = [channels, width, levels, steps, batch, learning_rate, ema, kl_weight, seed, source, len(images)]
    key = digest(told if private is None else [*told, "private"])
    finished, loss = Path(folder) / key, AutoencoderLoss(images, batch, kl_weight, seed)
    training = Training(steps=steps, learning_rate=learning_rate, batch=batch, ema=ema,
                        checkpoint_every=checkpoint_every)  # fmt: skip
    if private is not None or not (finished / "training.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(chance.seed_of(seed, "codec weights"))
            network = autoencoder(channels, width, levels)
        shown: dict[str, Any] = {"folder": Path(folder) / f"{key}.training", "key": key, "name": "codec"}
        if private is None:
            fit(network, loss, training, device=device, progress=progress, **shown)
        else:  # also when it is finished: the ledger learns of it then
            private(network, loss.each, require_patients(patients, images), training=asdict(training), **shown)
    if not (finished / "training.json").is_file():
        save_codec(network, images if private is None else None, finished, key)
    return load_codec(finished, device)
