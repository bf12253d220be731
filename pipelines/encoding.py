"""The codec of a run: taken, tuned or trained, and the decoder of the images that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medlt import config as configs
from medlt.data.loaders import dataset
from medlt.diffusion.codec import load_codec
from medlt.diffusion.decode import Decoder
from medlt.diffusion.loop import Training
from medlt.diffusion.train import train_codec
from medlt.diffusion.vae import finetune_codec
from medlt.runs import Run
from medlt.types import Codec
from pipelines import guarding
from pipelines.stages import Collection, Progress


def codec(run: Run, real: Collection, progress: Progress) -> Codec:
    """The codec of the config: a diffusers folder, or one trained here on the train split."""
    settings = run.config.codec
    with run.stage("codec") as folder:
        source, seed = dataset(real.train, run.config.size, real.cache), run.config.seed
        own = guarding.fit(run, real, progress)
        private: dict[str, Any] = {"private": own, "patients": patients(real)} if own else {}
        if isinstance(settings, configs.TrainedCodec):
            options = settings.model_dump(exclude={"kind"}) | private
            found: Codec = train_codec(source, **options, seed=seed, folder=folder, progress=progress)
        elif settings.tune is not None:
            found = _tuned_codec(run, real, settings, folder, private, progress)
        else:
            found = load_codec(settings.path, run.config.device)
    run.record(digests={"codec": found.digest})
    return found


def patients(real: Collection) -> list[str]:
    """Whose each train row is."""
    return list(real.train.rows["patient_id"].astype(str))


def _tuned_codec(
    run: Run, real: Collection, settings: configs.FolderCodec, folder: Path, private: dict[str, Any], progress: Progress
) -> Codec:
    """The autoencoder of a folder, tuned on the train split and held against the validation split."""
    assert settings.tune is not None
    chosen, size = settings.tune, run.config.size
    own, training = ("decoder_only", "edge", "ssim"), ("steps", "batch", "learning_rate")
    val = real.manifest.split("val")
    return finetune_codec(
        settings.path,
        dataset(real.train, size, real.cache),
        folder=folder,
        training=Training(**chosen.model_dump(include=set(training))),
        held=dataset(val, size, real.cache) if len(val.rows) else None,
        name_of_images=real.train.digest(),
        seed=run.config.seed,
        progress=progress,
        **chosen.model_dump(include=set(own)),
        **private,
    )


def way(config: configs.RunConfig) -> dict[str, Any]:
    """Where and in which precision networks sample; fp32 on a CPU leaves everything as it is."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    plain = (config.device, config.precision) == ("cpu", "fp32")
    return {"device": config.device, "dtype": kinds[config.precision], "channels_last": not plain}


def decoder(run: Run, codec: Codec) -> Decoder:
    """The decoder of images that are kept, in the run's precision."""
    plain = (run.config.device, run.config.precision) == ("cpu", "fp32")
    return Decoder(codec if plain else load_codec(codec_folder(run), **way(run.config)))


def codec_folder(run: Run) -> Path:
    """Where the run's autoencoder lies as a diffusers folder."""
    settings = run.config.codec
    if isinstance(settings, configs.FolderCodec) and settings.tune is None:
        return settings.path / "vae" if (settings.path / "model_index.json").is_file() else settings.path
    named = run.told()["digests"]["codec"]
    found = (place.parent for place in sorted(run.home("codec").glob("*/config.json")))
    return next(place for place in found if load_codec(place).digest == named)
