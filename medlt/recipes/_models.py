"""Models that are trained on the real images: sparse code, verifiers, guidance and latent classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medlt import config as configs
from medlt.checks.consistency import CrossFitClassifiers, cross_fit, folds
from medlt.checks.folds import private_folds
from medlt.checks.separation import digest_network, require_disjoint_networks
from medlt.classify.epistemic import Epistemic, fit_epistemic
from medlt.classify.latents import LatentClassifier, fit_latents
from medlt.classify.private import private_classifier
from medlt.classify.train import Classifier, fit_classifier
from medlt.diffusion.cache import Latents
from medlt.files import digest, write_table
from medlt.privacy.dpsgd.preflight import prepare
from medlt.recipes._cohort import Cohort, patients
from medlt.recipes._denoiser import labelled_latents
from medlt.recipes._setup import RunFolder
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import Iterated, iterate
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime

PRIVATE = ("network", "steps", "batch_size", "learning_rate", "weight_decay")
"""Settings that also apply to a private verifier. Class weights and early stopping would need all patients at once."""
CODE_METRICS = ("mean_max_probability", "tokens_used", "agreement", "reconstruction_l1", "val_macro_ap")


@dataclass(frozen=True)
class Learnt:
    """The parts that every method needs, already trained or loaded."""

    cohort: Cohort
    latents: Latents
    verifiers: CrossFitClassifiers
    private: PrivateFit | None


def learn_sparse_code(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, private: PrivateFit | None
) -> SimplicialCoder:
    """Learn the sparse code by iterated learning, and write its metrics to sparse_code_metrics.parquet and run.json."""
    options: dict[str, Any] = run.config.sparse.model_dump()
    if private is not None:
        assert run.config.privacy is not None
        options |= {"private": private, "patients": patients(cohort.train), "units": run.config.privacy.patients}
    with run.stage("sparse"):
        learnt = iterate_on(run, cohort, latents, run.runtime.at("fp32"), **options)
    write_table(run.path("sparse_code_metrics.parquet"), learnt.metrics)
    row, table = learnt.chosen, learnt.metrics
    values: dict[str, Any] = {name: None if pd.isna(row[name]) else float(row[name]) for name in CODE_METRICS}
    collapsed = table.loc[table["collapsed"], "generation"].unique().tolist()
    run.record(digests={"sparse": learnt.coder.digest})
    run.record(metrics={"sparse": values})
    run.record(sparse={"generation": int(row["generation"]), "retry": int(row["retry"]), "collapsed": collapsed})
    return learnt.coder


def iterate_on(
    run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents, runtime: Runtime, **options: Any
) -> Iterated:
    """Learn or load a sparse code of the train latents; the validation latents measure its generations."""
    train, val = (list(part.rows.index) for part in (cohort.train, cohort.val))
    named = [digest(latents.contents, uids) for uids in (train, val)]
    return iterate(
        latents.rows(train), cohort.train.labels(), latents.rows(val), cohort.val.labels(), contents=named[0],
        val_contents=named[1], runtime=runtime, store=run.store, **options,
    )  # fmt: skip


def train_verifiers(
    run: RunFolder[configs.RunConfig], cohort: Cohort, private: PrivateFit | None
) -> CrossFitClassifiers:
    """Train cross-fitted classifiers on real train images: verifier k is trained without the patients of fold k.

    The training is private if `private` is given.
    """
    rows, config = cohort.train.rows, run.config
    make = private_folds if private is not None else folds
    fold = make(rows["patient_id"], rows[list(cohort.findings)], config.checks.folds, config.seed)
    train, val = (cohort.training_set(part, config.classifier.size) for part in (cohort.train, cohort.val))
    options = config.classifier.model_dump(exclude={"size"})
    with run.stage("verifiers"):

        def verifier(uids: Sequence[str], k: int) -> Classifier:
            runtime, name = run.runtime.seeded("judge", k), f"verifier {k}"
            if private is not None:
                owners = list(rows.loc[list(uids), "patient_id"].astype(str))
                chosen = {field: options[field] for field in PRIVATE}
                return private_classifier(train.take(uids), owners, private=private, prepare=prepare, runtime=runtime,
                                          store=run.store, name=name, **chosen)  # fmt: skip
            return fit_classifier(train.take(uids), val, runtime=runtime, store=run.store, name=name, **options)

        return cross_fit(fold, lambda uids: train.take(uids).images, verifier, cohort.findings)


def train_guidance_classifier(
    run: RunFolder[configs.RunConfig], cohort: Cohort, verifiers: CrossFitClassifiers
) -> Epistemic:
    """Train the guidance classifier, with another architecture and seed than the verifiers, and its epistemic head.

    Raises InputError if it has the weights of a verifier.
    """
    config = run.config
    chosen = config.guidance_classifier or config.classifier.another()
    train, val = (cohort.training_set(part, chosen.size) for part in (cohort.train, cohort.val))
    options, runtime = chosen.model_dump(exclude={"size"}), run.runtime.seeded("predictor")
    with run.stage("guidance_classifier"):
        classifier = fit_classifier(train, val, runtime=runtime, store=run.store, name="guidance_classifier", **options)
    verifier_digests = [digest_network(one.net) for one in verifiers.verifiers if isinstance(one, Classifier)]
    require_disjoint_networks({"guidance": [digest_network(classifier.net)], "verifier": verifier_digests})
    with run.stage("epistemic"):
        head = fit_epistemic(classifier, train, runtime=runtime, store=run.store)
    run.record(digests={"guidance_classifier": head.digest})
    return head


def train_latent_classifier(run: RunFolder[configs.RunConfig], cohort: Cohort, latents: Latents) -> LatentClassifier:
    """Train a small classifier of standardised latents, whose features measure distances between latents."""
    train, val = (labelled_latents(cohort, latents, part) for part in (cohort.train, cohort.val))
    with run.stage("latent_classifier"):
        classifier = fit_latents(
            train,
            val,
            runtime=run.runtime.seeded("eyes"),  # the published figures depend on the name of this stream
            store=run.store,
            steps=run.config.classifier.steps,
        )
    run.record(digests={"latent_classifier": classifier.digest})
    return classifier
