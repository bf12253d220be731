"""The codec of a run, the latents of its real images, and the decoder of its synthetic images."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from medlt import config as configs
from medlt.diffusion.cache import Latents, Standardiser, cache_latents, channel_statistics
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.decode import Decoder
from medlt.diffusion.parts import CodecParts, WithheldImages, built_codec
from medlt.diffusion.train_codec import train_codec
from medlt.diffusion.vae import finetune_codec
from medlt.plugins import CODECS
from medlt.recipes._cohort import Cohort, patients
from medlt.recipes._setup import RunFolder
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import Codec, InputError

TUNING, LOSSES = ("steps", "batch_size", "learning_rate"), ("decoder_only", "edge", "ssim")


def make_codec(run: RunFolder[configs.RunConfig], cohort: Cohort, private: PrivateFit | None) -> Codec:
    """Return the codec of the config: a diffusers folder, one trained on the train split, or that of a plug-in."""
    settings, size = run.config.codec, run.config.size
    parts = CodecParts(
        train=cohort.dataset(cohort.train, size),
        val=cohort.dataset(cohort.val, size) if len(cohort.val.rows) else None,
        contents=cohort.named(cohort.train),
        size=size,
        runtime=run.runtime.at("fp32"),
        store=run.store,
        private=private,
        patients=patients(cohort.train),
    )
    if private is not None and CODECS.package(settings.kind):
        parts = replace(parts, train=WithheldImages(), val=None, contents="", private=None, patients=())
    with run.stage("codec"):
        codec = built_codec(settings.kind, settings, parts)
    require_factor(run.config, codec.factor)
    run.record(digests={"codec": codec.digest})
    return codec


def trained_codec(settings: configs.TrainedCodec, parts: CodecParts) -> AutoencoderCodec:
    """Return a small autoencoder trained on the train split."""
    return train_codec(parts.train, **settings.model_dump(exclude={"kind"}), **_training(parts))


def folder_codec(settings: configs.FolderCodec, parts: CodecParts) -> AutoencoderCodec:
    """Return the autoencoder of a diffusers folder, as it is or fine-tuned on the train split."""
    if settings.tune is None:
        return load_codec(settings.path, parts.runtime.device)
    return finetune_codec(
        settings.path,
        parts.train,
        training=Training(**settings.tune.model_dump(include=set(TUNING))),
        validation=parts.val,
        **settings.tune.model_dump(include=set(LOSSES)),
        **_training(parts),
    )


def _training(parts: CodecParts) -> dict[str, Any]:
    """Return what both trainings take, with the privacy units in a private run."""
    options: dict[str, Any] = {"contents": parts.contents, "runtime": parts.runtime, "store": parts.store}
    return options if parts.private is None else options | {"private": parts.private, "patients": parts.patients}


def require_factor(config: configs.RunConfig, factor: int) -> None:
    """Raise InputError if a codec that divides images by `factor`, and the denoiser, cannot divide the image size."""
    chosen, piece = config.denoiser, 1
    if isinstance(chosen, configs.UNetConfig):
        piece = 2 ** (chosen.levels - 1)
    elif isinstance(chosen, configs.TransformerConfig):
        piece = chosen.patch
    if config.size % (factor * piece):
        raise InputError(
            f"size: the codec divides {config.size} px by {factor} and the denoiser by {piece}; "
            f"give a multiple of {factor * piece}, or fewer denoiser.levels"
        )


def encode(run: RunFolder[configs.RunConfig], cohort: Cohort, codec: Codec) -> Latents:
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
