"""What is learnt from the train split before anything is made: codec, sparse code, denoiser, judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from medlt import config as configs
from medlt.chance import seed_of
from medlt.checks.consistency import Crossfit, crossfit, folds
from medlt.classify.train import Classifier, fit
from medlt.data.loaders import dataset
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cache import Latents, Standardiser, cache_latents, channel_statistics
from medlt.diffusion.codec import load_codec
from medlt.diffusion.train import train_codec, train_denoiser
from medlt.files import digest_file, write_table
from medlt.runs import Run
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import iterate
from medlt.types import Codec
from pipelines.stages import Collection, Progress


def codec(run: Run, real: Collection, progress: Progress) -> Codec:
    """The codec of the config: a diffusers folder, or one trained here on the train split."""
    settings = run.config.codec
    with run.stage("codec") as folder:
        if isinstance(settings, configs.FolderCodec):
            found: Codec = load_codec(settings.path)
        else:
            source = dataset(real.train, run.config.size, real.cache)
            options = settings.model_dump(exclude={"kind"})
            found = train_codec(source, **options, seed=run.config.seed, folder=folder, progress=progress)
    run.record(digests={"codec": found.digest})
    return found


def latents(run: Run, real: Collection, codec: Codec, progress: Progress) -> Latents:
    """All images through the codec, once; moments are kept on disk and read as needed."""
    with run.stage("latents") as folder:
        source = dataset(real.manifest, run.config.size, real.cache)
        cache = cache_latents(codec, source, folder, source=real.manifest.digest(), progress=progress)
        mean, sd = channel_statistics(cache, codec, list(real.train.rows.index))
    return Latents(cache, codec, Standardiser(mean, sd))


def sparse(run: Run, real: Collection, latents: Latents, progress: Progress) -> SimplicialCoder:
    """Iterated learning of the sparse code; its health goes to health.parquet and run.json."""
    val, train = real.manifest.split("val"), real.train
    pairs = [(latents(list(part.rows.index)), part.labels()) for part in (train, val)]
    options = run.config.sparse.model_dump()
    with run.stage("sparse") as folder:
        learnt = iterate(*pairs[0], *pairs[1], **options, seed=run.config.seed, folder=folder, progress=progress)
    write_table(run.path("health.parquet"), learnt.health)
    last = learnt.health.iloc[-1]
    names = ("mean_max_probability", "agreement", "reconstruction_l1")
    weights = sorted(folder.glob("generation_*.safetensors"))[-1]
    run.record(digests={"sparse": digest_file(weights)})
    run.record(health={"sparse": {name: None if pd.isna(last[name]) else float(last[name]) for name in names}})
    return learnt.coder


def denoiser(run: Run, real: Collection, latents: Latents, progress: Progress) -> Backbone:
    """The label-conditioned denoiser, trained on standardised latents of the train split."""
    options = run.config.denoiser.model_dump()
    train, val = real.train, real.manifest.split("val")
    validation = (list(val.rows.index), val.labels())
    with run.stage("denoiser") as folder:
        net = train_denoiser(
            latents,
            list(train.rows.index),
            train.labels(),
            validation=validation,
            **options,
            seed=run.config.seed,
            folder=folder,
            progress=progress,
        )
    run.record(digests={"denoiser": digest_file(folder / "model.safetensors")})
    return net.backbone()


def classifier_options(config: configs.RunConfig) -> dict[str, Any]:
    """The settings all classifiers of a run share."""
    return config.classifier.model_dump(exclude={"size"})


def judges(run: Run, real: Collection, progress: Progress) -> Crossfit:
    """Cross-fitted classifiers on real train images: judge k never saw the patients of fold k."""
    rows, config = real.train.rows, run.config
    fold = folds(rows["patient_id"], rows[list(real.train.findings)], config.checks.folds, config.seed)
    train, val = (real.training_set(split, config.classifier.size) for split in ("train", "val"))
    with run.stage("judges") as folder:

        def judge(uids: Sequence[str], k: int) -> Classifier:
            seed, options = seed_of(config.seed, "judge", k), classifier_options(config)
            return fit(train.take(uids), val, folder=folder, name=f"judge {k}", progress=progress, seed=seed, **options)

        return crossfit(fold, lambda uids: train.take(uids).images, judge, real.train.findings)
