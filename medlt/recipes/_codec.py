"""The codec of a run, the latents of its real images, and the decoder of its synthetic images."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from medlt import config as configs
from medlt.classify.cam import frozen, layer_activation_map, peak_one
from medlt.classify.feature_maps import ClassifierMaps
from medlt.classify.train import Classifier, fit_classifier
from medlt.diffusion.cache import Latents, Standardiser, cache_latents, channel_statistics
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.decode import Decoder
from medlt.diffusion.emphasis import Emphasis
from medlt.diffusion.parts import CodecParts, WithheldImages, built_codec
from medlt.diffusion.pixels import PixelCodec
from medlt.diffusion.placement import best_dtype
from medlt.diffusion.train_codec import train_codec
from medlt.diffusion.vae import finetune_codec
from medlt.plugins import CODECS
from medlt.recipes._cohort import Cohort, patients
from medlt.recipes._setup import RunFolder
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import Codec, InputError

NOT_OPTIONS = {"kind", "edge", "lesion_weight", "perceptual_weight"}
"""Keys of `TrainedCodec` that `train_codec` does not take: the weights of its loss are an `Emphasis`."""
MAP, CHUNK = 32, 64
"""Side of the maps that weigh the pixels of the codec's loss, and images in a call that makes them."""
TUNING, LOSSES = ("steps", "batch_size", "learning_rate"), ("decoder_only", "edge", "ssim")


def make_codec(run: RunFolder[configs.RunConfig], cohort: Cohort, private: PrivateFit | None) -> Codec:
    """Return the codec of the config: of a folder, trained on the train split, the identity, or that of a plug-in."""
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
    if isinstance(settings, configs.TrainedCodec) and (settings.perceptual_weight or settings.lesion_weight):
        parts = replace(parts, **_emphasised(run, cohort, settings))
    with run.stage("codec"):
        codec = built_codec(settings.kind, settings, parts)
    require_factor(run.config, codec.factor)
    run.record(digests={"codec": codec.digest})
    return codec


def _emphasised(run: RunFolder[configs.RunConfig], cohort: Cohort, settings: configs.TrainedCodec) -> dict[str, Any]:
    """Return the features and the lesion maps of the codec's loss, as far as the settings have a weight for them."""
    classifier = None
    if settings.perceptual_weight or (settings.lesion_weight and unmarked(cohort)):
        classifier = train_codec_classifier(run, cohort)
    maps = lesion_maps(run, cohort, classifier) if settings.lesion_weight else None
    return {
        "features": ClassifierMaps(classifier) if settings.perceptual_weight and classifier else None,
        "lesions": maps,
    }


def train_codec_classifier(run: RunFolder[configs.RunConfig], cohort: Cohort) -> Classifier:
    """Train the classifier of the codec's loss, with another architecture and seed than the verifiers.

    It reads train and validation images at the size of the codec, and neither guides nor verifies.
    """
    config = run.config
    options = config.classifier.another().model_dump(exclude={"size"})
    train, val = (cohort.training_set(part, config.size) for part in (cohort.train, cohort.val))
    with run.stage("codec_classifier"):
        return fit_classifier(
            train, val, runtime=run.runtime.seeded("codec classifier"), store=run.store, name="codec_classifier",
            **options,
        )  # fmt: skip


def unmarked(cohort: Cohort) -> list[tuple[str, str]]:
    """Return (uid, finding) of the positive train rows without a mask or box, for the findings of the data."""
    rows, regions = cohort.train.rows, cohort.regions
    named = [name for name in cohort.findings if name != cohort.manifest.no_finding]
    return [
        (str(uid), name)
        for name in named
        for uid in rows.index[rows[name] == 1]
        if regions.kind(str(uid), name) is None
    ]


def lesion_maps(run: RunFolder[configs.RunConfig], cohort: Cohort, classifier: Classifier | None) -> Tensor:
    """Return where the findings of each train image are, uint8 [N,1,MAP,MAP], 0 to 255: the largest over its findings.

    A mask or box counts where there is one, else the classifier's activation map, without a classifier nothing.
    """
    uids = [str(uid) for uid in cohort.train.rows.index]
    at, maps = {uid: i for i, uid in enumerate(uids)}, torch.zeros(len(uids), MAP, MAP)
    for name in cohort.regions.findings:
        known = [uid for uid in cohort.regions.known(name) if uid in at and cohort.train.rows.loc[uid, name] == 1]
        for uid in known:  # one at a time: a mask is as large as its image
            maps[at[uid]] = maps[at[uid]].maximum(cohort.regions.masks([uid], name, MAP)[0])
    others = unmarked(cohort) if classifier is not None else []
    for start in range(0, len(others), CHUNK):
        part = others[start : start + CHUNK]
        for (uid, _), one in zip(part, _activation(run, cohort, classifier, part), strict=True):
            maps[at[uid]] = maps[at[uid]].maximum(one)
    return (maps * 255).round().to(torch.uint8)[:, None]


def _activation(
    run: RunFolder[configs.RunConfig], cohort: Cohort, classifier: Classifier | None, pairs: list[tuple[str, str]]
) -> Tensor:
    """Return the activation maps [B,MAP,MAP] in [0,1] of (uid, finding) pairs."""
    assert classifier is not None
    net, column = frozen(classifier), torch.tensor([cohort.findings.index(name) for _, name in pairs])
    images = cohort.images(cohort.train, run.config.size, [uid for uid, _ in pairs]).float() / 255
    place = net.head.weight.device
    seen = layer_activation_map(net, images.to(place), column.to(place))[:, None]
    return peak_one(functional.interpolate(seen, (MAP, MAP), mode="area")[:, 0]).cpu()


def trained_codec(settings: configs.TrainedCodec, parts: CodecParts) -> AutoencoderCodec:
    """Return a small autoencoder trained on the train split."""
    emphasis = Emphasis(
        edge=settings.edge, lesion_weight=settings.lesion_weight, lesions=parts.lesions,
        feature_weight=settings.perceptual_weight, features=parts.features,
    )  # fmt: skip
    return train_codec(parts.train, emphasis=emphasis, **settings.model_dump(exclude=NOT_OPTIONS), **_training(parts))


def pixel_codec(settings: configs.PixelsConfig, parts: CodecParts) -> PixelCodec:
    """Return the identity, for pixel diffusion."""
    return PixelCodec(settings.patch, parts.runtime.device)


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


def gradient_codec(runtime: Runtime, codec: Codec, precision: Literal["auto", "fp32", "bf16"]) -> Codec:
    """Return the codec whose gradient guidance takes. auto: bf16 where the device multiplies it natively."""
    if precision == "auto":
        native = best_dtype(runtime.device) == torch.bfloat16
        precision = "bf16" if native or runtime.precision == "bf16" else "fp32"
    return decoder(runtime.at(precision), codec).codec
