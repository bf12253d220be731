"""Training of a backbone on a run's train split: what it is shown, how, and what is drawn on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medlt.diffusion.adapt import How
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.decode import Decoder
from medlt.diffusion.finetune import LabelledLatents, Samples, train_backbone
from medlt.diffusion.losses import Extra
from medlt.runs import Run
from pipelines import guarding
from pipelines.door import about, objective, training
from pipelines.stages import Collection, Progress

SHOWN = 8
Further = Callable[[Backbone], Sequence[Extra]]
"""The backbone to be trained -> losses of its training beside the usual one."""


def nothing(backbone: Backbone) -> Sequence[Extra]:
    """No further loss."""
    return ()


def data(real: Collection, latents: Latents, split: str, space: str = "standardised") -> LabelledLatents:
    """Latents in this space, labels and circumstances of a split."""
    part = real.manifest.split(split)
    patients = list(part.rows["patient_id"].astype(str))
    return LabelledLatents(_accessor(latents, space), list(part.rows.index), part.labels(), about(part), patients)


def taken(data: LabelledLatents, rows: np.ndarray) -> LabelledLatents:
    """These rows alone."""
    about, patients = ([part[i] for i in rows] if part else () for part in (data.about, data.patients))
    return LabelledLatents(data.latents, [data.uids[i] for i in rows], data.labels[rows], about, patients)


def joined(parts: Sequence[LabelledLatents]) -> LabelledLatents:
    """All rows of several sets of one form, one after the other."""
    home = {uid: part for part in parts for uid in part.uids}

    def latents(uids: Sequence[str]) -> Tensor:
        return torch.cat([home[uid].latents([uid]) for uid in uids])

    about, patients = ([one for part in parts for one in getattr(part, name)] for name in ("about", "patients"))
    labels = np.concatenate([part.labels for part in parts])
    return LabelledLatents(latents, list(home), labels, about, patients)


def _accessor(latents: Latents, space: str) -> Callable[..., Tensor]:
    return latents if space == "standardised" else lambda uids: latents.codec.latents(latents.cache[uids])


def train(
    backbone: Backbone, run: Run, real: Collection, latents: Latents, folder: Path, how: How, progress: Progress,
    further: Further = nothing,
) -> Backbone:  # fmt: skip
    """Train it as the run's config says, or go on, or find it trained. Its network comes back with EMA weights."""
    chosen = run.config.denoiser
    held = len(real.manifest.split("val").rows) > 0
    return train_backbone(
        backbone,
        data(real, latents, "train", backbone.space),
        folder=folder,
        training=training(chosen),
        how=how,
        objective=objective(chosen),
        extra=further(backbone),
        validation=data(real, latents, "val", backbone.space) if held else None,
        samples=_samples(run, real, latents, backbone),
        tracker=chosen.tracker,
        seed=run.config.seed,
        device=run.config.device,
        progress=progress,
        private=guarding.fit(run, real, progress),
    )


def _samples(run: Run, real: Collection, latents: Latents, backbone: Backbone) -> Samples:
    """A grid at each checkpoint: the label vector of a real row for each of a few tail findings."""
    height, width = latents.cache.shape[-2:]
    own, decode = data(real, latents, "train", backbone.space), Decoder(latents.codec)
    first = [int((real.train.rows[name] == 1).to_numpy().argmax()) for name in real.tail[:SHOWN]]
    space = (lambda z: z) if backbone.space == "codec" else latents.standardiser.back
    return Samples(
        labels=torch.from_numpy(own.labels[first].astype("float32")),
        shape=(height, width),
        decode=lambda z: decode(space(z)),
        about=[own.about[i] for i in first] if own.about else (),
        seed=run.config.seed,
    )
