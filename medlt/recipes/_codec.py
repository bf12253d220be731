"""The codec of a run, the latents of its real images, and the decoder of its synthetic images."""

from __future__ import annotations

import copy
from typing import Any

import torch

from medlt import config as configs
from medlt.diffusion.cache import Latents, Standardiser, cache_latents, channel_statistics
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.decode import Decoder
from medlt.diffusion.train import train_codec
from medlt.diffusion.vae import finetune_codec
from medlt.recipes._cohort import Cohort, patients
from medlt.recipes._setup import Run
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import Codec

TUNING, LOSSES = ("steps", "batch_size", "learning_rate"), ("decoder_only", "edge", "ssim")


def make_codec(run: Run[configs.RunConfig], cohort: Cohort, private: PrivateFit | None) -> AutoencoderCodec:
    """Return the codec of the config: a diffusers folder, as it is or fine-tuned, or one trained on the train split."""
    settings, runtime = run.config.codec, run.runtime.at("fp32")
    images = cohort.dataset(cohort.train, run.config.size)
    options: dict[str, Any] = {"contents": cohort.named(cohort.train), "runtime": runtime, "store": run.store}
    if private is not None:
        options |= {"private": private, "patients": patients(cohort.train)}
    with run.stage("codec"):
        if isinstance(settings, configs.TrainedCodec):
            codec = train_codec(images, **settings.model_dump(exclude={"kind"}), **options)
        elif settings.tune is None:
            codec = load_codec(settings.path, runtime.device)
        else:
            chosen, val = settings.tune, cohort.val
            codec = finetune_codec(
                settings.path,
                images,
                training=Training(**chosen.model_dump(include=set(TUNING))),
                held=cohort.dataset(val, run.config.size) if len(val.rows) else None,
                **chosen.model_dump(include=set(LOSSES)),
                **options,
            )
    run.record(digests={"codec": codec.digest})
    return codec


def encode(run: Run[configs.RunConfig], cohort: Cohort, codec: Codec) -> Latents:
    """Return all real images as latents. Their moments are cached on disk and read on demand."""
    with run.stage("latents"):
        source = cohort.dataset(cohort.manifest, run.config.size)
        cache = cache_latents(
            codec, source, contents=cohort.contents(cohort.manifest), runtime=run.runtime, store=run.store
        )
        if run.config.privacy is not None or run.config.latents == "as_coded":
            # the ledger does not account for statistics of the train split
            standardiser = Standardiser(torch.zeros(codec.channels), torch.ones(codec.channels))
        else:
            standardiser = Standardiser(*channel_statistics(cache, codec, list(cohort.train.rows.index)))
    return Latents(cache, codec, standardiser)


def plain(runtime: Runtime) -> bool:
    """Return whether networks sample in fp32 on a CPU, that is, without any change."""
    return (runtime.device, runtime.precision) == ("cpu", "fp32")


def placement(runtime: Runtime) -> dict[str, Any]:
    """Return device, dtype and memory format for sampling; fp32 on a CPU changes nothing."""
    return {"device": runtime.device, "dtype": runtime.dtype, "channels_last": not plain(runtime)}


def decoder(runtime: Runtime, codec: Codec) -> Decoder:
    """Return the decoder of synthetic images, in the run's precision."""
    if plain(runtime) or not isinstance(codec, AutoencoderCodec):
        return Decoder(codec)
    return Decoder(AutoencoderCodec(copy.deepcopy(codec.network), **placement(runtime)))
