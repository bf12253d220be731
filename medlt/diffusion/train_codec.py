"""Training from nothing of a small autoencoder.

Loss: that of medlt.diffusion.emphasis, and a small pull of the posterior to the unit normal (arXiv 2112.10752).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medlt.diffusion.autoencoder import (
    AutoencoderLoss,
    Reconstruction,
    autoencoder,
    fit_codec,
    made_codec,
    private_key,
    save_codec,
)
from medlt.diffusion.cache import Images
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.emphasis import PLAIN, Emphasis
from medlt.files import digest
from medlt.rng import seed_of
from medlt.store import Store
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import InputError

FORMAT = 1  # part of the key: increase it if the same settings would train other weights


def train_codec(
    images: Images, *, contents: str, runtime: Runtime, store: Store, channels: int = 4, width: int = 32,
    levels: int = 3, steps: int = 600, batch_size: int = 16, learning_rate: float = 1e-3, ema_decay: float = 0.99,
    kl_weight: float = 1e-3, emphasis: Emphasis = PLAIN, checkpoint_every: int = 100,
    private: PrivateFit | None = None, patients: Sequence[str] = (),
) -> AutoencoderCodec:  # fmt: skip
    """Train a small AutoencoderKL on `images`, a dataset of dicts with `image` [1,H,W] in [0,1].

    It is an artifact of the kind "codec", a diffusers folder for `load_codec`. The store returns it if it exists, and a
    killed training continues. `contents` is a digest of the pixels of all images in order. The network has `width`
    channels at the latent size and half as many at each larger size. `emphasis` holds what counts more than the mean of
    all pixels. `private` trains privately instead, with `patients`, one for each image, as units; latents are then not
    scaled (`save_codec`). Raises InputError for a private training with the features of another network.
    """
    if private is not None and emphasis.feature_weight:
        raise InputError("privacy: the network of codec.perceptual_weight is not in the ledger; set it to 0")
    settings = {"channels": channels, "width": width, "levels": levels, "kl_weight": kl_weight,
                "emphasis": emphasis.digest}  # fmt: skip
    training = Training(steps=steps, learning_rate=learning_rate, batch_size=batch_size, ema_decay=ema_decay,
                        checkpoint_every=checkpoint_every)  # fmt: skip
    key = {"made": "trained", "format": FORMAT, "contents": contents, "images": len(images), "settings": settings,
           "training": training.digest(), "seed": runtime.seed, "precision": runtime.precision,
           "private": private_key(private, images, patients)}  # fmt: skip

    def build(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(runtime.seed, "codec weights"))
            network = Reconstruction(autoencoder(channels, width, levels), decoder_only=False)
        loss = AutoencoderLoss(images, batch_size, kl_weight, runtime.seed, emphasis)
        options: dict[str, Any] = {"runtime": runtime, "folder": folder, "key": digest(key), "name": "codec"}
        if private is None:
            fit_codec(network, loss, training, **options)
        else:
            private(network, loss.each, patients, training=training, **options)
        save_codec(network.autoencoder, images if private is None else None, folder)

    return made_codec(store, key, build, runtime, private)
