"""Training from nothing of the label-conditioned denoiser.

It is trained as any backbone is (medlt.diffusion.finetune), with the SNR weight truncated from below as well
(arXiv 2202.00512).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medlt.diffusion.finetune import Accessor, LabelledLatents, Objective, train_backbone
from medlt.diffusion.labels import LabelNetwork, LabelUNet
from medlt.diffusion.noise import Prediction, resolution_shift
from medlt.rng import seed_of
from medlt.training.runtime import Runtime
from medlt.training.settings import Training


def new_network(
    family: type[LabelNetwork], data: LabelledLatents, seed: int, settings: Mapping[str, Any]
) -> LabelNetwork:
    """Return an untrained network for these latents and findings, with weights from the seed.

    `settings` are those of the family, without channels and findings. A `shift` of None is that of the latents' side
    (`medlt.diffusion.noise.resolution_shift`).
    """
    x0, _ = data.rows(np.arange(1))
    if settings.get("shift", 1.0) is None:
        settings = {**settings, "shift": resolution_shift(math.sqrt(x0.shape[-2] * x0.shape[-1]))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "denoiser weights"))
        return family(channels=x0.shape[1], findings=np.shape(data.labels)[1], **settings)


def train_denoiser(
    latents: Accessor, uids: Sequence[str], labels: np.ndarray, *, contents: str, folder: Path, runtime: Runtime,
    family: type[LabelNetwork] = LabelUNet, settings: Mapping[str, Any] | None = None,
    validation: tuple[Sequence[str], np.ndarray] | None = None, width: int = 64, levels: int = 2, steps: int = 3000,
    batch_size: int = 32, learning_rate: float = 3e-4, ema_decay: float = 0.999,
    prediction: Prediction = "v_prediction", condition_dropout: float = 0.1, checkpoint_every: int = 500,
) -> LabelNetwork:  # fmt: skip
    """Train a label-conditional network on `latents(uids)` with labels [N,K] (NaN = unknown). Return its average.

    `contents` names the latents, see `LabelledLatents`. `settings` are those of the family, without channels, findings
    and prediction; by default `width` and `levels`. `medlt.diffusion.finetune.train_backbone` writes to `folder`, which
    finally gets model.safetensors and model.json. A second call continues from the checkpoint, also with more `steps`.
    Raises InputError if the folder holds another training. bf16 is about 1.6 times as fast on CPUs with bfloat16 units;
    weights stay fp32.
    """
    data = LabelledLatents(latents, uids, labels, contents)
    own = {"width": width, "levels": levels} if settings is None else settings
    net = new_network(family, data, runtime.seed, {**own, "prediction": prediction})
    held = LabelledLatents(latents, *validation, contents) if validation is not None and len(validation[0]) else None
    training = Training(steps=steps, learning_rate=learning_rate, batch_size=batch_size, ema_decay=ema_decay,
                        checkpoint_every=checkpoint_every)  # fmt: skip
    train_backbone(
        net.backbone(), data, folder=Path(folder), training=training, validation=held, runtime=runtime,
        objective=Objective(condition_dropout=condition_dropout, snr_floor=1.0),
    )  # fmt: skip
    net.save(Path(folder))
    return net
