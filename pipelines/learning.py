"""What is learnt from the train split before anything is made: codec, sparse code, denoiser, judges."""

from __future__ import annotations

import pandas as pd
import torch

from medlt.chance import seed_of
from medlt.checks.apart import apart, digest_network
from medlt.checks.consistency import Crossfit
from medlt.classify.epistemic import Epistemic, fit_epistemic
from medlt.classify.latents import LatentClassifier, fit_latents
from medlt.classify.train import Classifier, fit
from medlt.data.loaders import dataset
from medlt.diffusion.cache import LatentCache, Latents, Standardiser, cache_latents, channel_statistics
from medlt.files import digest_file, write_table
from medlt.runs import Run
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import iterate
from medlt.types import Codec
from pipelines import guarding, tuning
from pipelines.stages import Collection, Progress


def latents(run: Run, real: Collection, codec: Codec, progress: Progress) -> Latents:
    """All images through the codec, once; moments are kept on disk and read as needed."""
    with run.stage("latents") as folder:
        source = dataset(real.manifest, run.config.size, real.cache)
        cache = cache_latents(codec, source, folder, source=real.manifest.digest(), progress=progress)
    return Latents(cache, codec, _standardiser(run, real, cache, codec))


def _standardiser(run: Run, real: Collection, cache: LatentCache, codec: Codec) -> Standardiser:
    """Of the train split, or none: in a private run statistics of its patients would be outside the ledger."""
    if run.config.privacy is not None or run.config.latents == "as_coded":
        return Standardiser(torch.zeros(codec.channels), torch.ones(codec.channels))
    return Standardiser(*channel_statistics(cache, codec, list(real.train.rows.index)))


def sparse(run: Run, real: Collection, latents: Latents, progress: Progress) -> SimplicialCoder:
    """Iterated learning of the sparse code; its health goes to health.parquet and run.json."""
    val, train = real.manifest.split("val"), real.train
    pairs = [(latents(list(part.rows.index)), part.labels()) for part in (train, val)]
    options, own = run.config.sparse.model_dump(), guarding.fit(run, real, progress)
    options |= {"private": own, "patients": list(train.rows["patient_id"].astype(str))} if own else {}
    with run.stage("sparse") as folder:
        learnt = iterate(*pairs[0], *pairs[1], **options, seed=run.config.seed, folder=folder, progress=progress)
    write_table(run.path("health.parquet"), learnt.health)
    last = learnt.health.iloc[-1]
    names = ("mean_max_probability", "agreement", "reconstruction_l1")
    weights = folder / f"generation_{run.config.sparse.generations - 1:02d}.safetensors"
    run.record(digests={"sparse": digest_file(weights)})
    run.record(health={"sparse": {name: None if pd.isna(last[name]) else float(last[name]) for name in names}})
    return learnt.coder


def predictor(run: Run, real: Collection, judges: Crossfit, progress: Progress) -> Epistemic:
    """The classifier that guides, of another architecture and seed than the judges that verify, and its epistemic head.

    Raises InputError if it has a judge's weights.
    """
    config = run.config
    other = "dense" if config.classifier.network == "small" else "small"
    chosen = config.predictor or config.classifier.model_copy(update={"network": other})
    train, val = (real.training_set(split, chosen.size) for split in ("train", "val"))
    options, seed = chosen.model_dump(exclude={"size"}), seed_of(config.seed, "predictor")
    with run.stage("predictor") as folder:
        found = fit(
            train, val, folder=folder, name="predictor", progress=progress, seed=seed, device=config.device, **options
        )
    apart({"guiding": [digest_network(found.net)], "verifying": [digest_network(j.net) for j in _classifiers(judges)]})
    with run.stage("epistemic") as folder:
        head = fit_epistemic(found, train, folder=folder, seed=seed, progress=progress)
    run.record(digests={"predictor": head.digest})
    return head


def _classifiers(judges: Crossfit) -> list[Classifier]:
    return [judge for judge in judges.judges if isinstance(judge, Classifier)]


def latent_classifier(run: Run, real: Collection, latents: Latents, progress: Progress) -> LatentClassifier:
    """A small classifier of standardised latents, whose features say how far latents are apart."""
    train, val = (tuning.data(real, latents, split) for split in ("train", "val"))
    with run.stage("latent_classifier") as folder:
        found = fit_latents(
            train,
            val,
            folder=folder,
            progress=progress,
            seed=seed_of(run.config.seed, "eyes"),  # an old name, kept: the figures in docs/ stand on this stream
            device=run.config.device,
            steps=run.config.classifier.steps,
        )
    run.record(digests={"latent_classifier": found.digest})
    return found
