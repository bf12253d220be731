"""Check the labels of sources with evaluation classifiers, which neither guided nor selected the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.checks.folds import CrossFitClassifiers, cross_fit
from medlt.checks.separation import digest_network, require_disjoint_networks
from medlt.classify.classifier import Classifier
from medlt.classify.sets import TrainingSet
from medlt.classify.train import fit_classifier
from medlt.evaluation.agreement import agreement, confusion, filter_effect
from medlt.evaluation.sources import SourceImages
from medlt.files import set_aside, write_table
from medlt.store import Store
from medlt.training.runtime import Runtime

TABLES = ("agreement", "confusion", "filter_effect", "rejections")


def check_labels(
    sources: Sequence[SourceImages],
    train: TrainingSet,
    val: TrainingSet,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    runtime: Runtime,
    store: Store,
) -> dict[str, pd.DataFrame]:
    """Train evaluation classifiers for every source, and write the tables TABLES as parquet files.

    train, val: the real rows at the classifiers' input size; settings: of `medlt.classify.train.fit_classifier`. Each
    table has a block per source, named in the column `source`; a source without kept images has rejections only. Tables
    that no source fills are moved to superseded/. Returns the tables by name. Raises InputError if an evaluation
    classifier has another role.
    """
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for source in sources:
        for name, table in _tables(source, train, val, settings, runtime, store):
            parts[name].append(table.assign(source=source.name))
    whole = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items() if tables}
    for name in TABLES:
        if name in whole:
            write_table(Path(folder) / f"{name}.parquet", whole[name])
        else:
            set_aside(Path(folder) / f"{name}.parquet", Path(folder))
    return whole


def _tables(
    source: SourceImages,
    train: TrainingSet,
    val: TrainingSet,
    settings: Mapping[str, Any],
    runtime: Runtime,
    store: Store,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (table, its rows) of one source. Scores of a finding that a classifier was not trained on are NaN."""
    if not source.empty:
        known = source.require_verifiers()
        classifiers = evaluation_classifiers(source, train, val, settings=settings, runtime=runtime, store=store)
        labels, made_for = known.labels[source.findings], source.kept["finding"]
        held_out = known.mask_unobserved(classifiers.held_out, known.cross_fit.fold)
        scores = source.predict(classifiers, int(train.images.shape[-1]), list(source.kept.index))
        scores = known.mask_unobserved(scores, source.kept["fold"])
        yield "agreement", agreement(held_out, labels, scores, made_for)
        yield "confusion", confusion(held_out, labels, scores, made_for)
        yield (
            "filter_effect",
            filter_effect(known.held_out(), held_out, labels, source.kept["verifier"], scores, made_for),
        )
    failed = source.checks[~source.checks["passed"].astype(bool)].groupby("check").size()
    yield "rejections", failed.rename("images").rename_axis("check").reset_index().assign(planned=source.planned)


def evaluation_classifiers(
    source: SourceImages,
    train: TrainingSet,
    val: TrainingSet,
    *,
    settings: Mapping[str, Any],
    runtime: Runtime,
    store: Store,
) -> CrossFitClassifiers:
    """Train evaluation classifiers on the folds of the source's verifiers, from other seeds.

    None of them is trained on a parent of an image that it scores. Raises InputError if one of them has another role.
    """

    def train_one(uids: Sequence[str], k: int) -> Classifier:
        own = runtime.seeded("reporter", k)  # key of a random stream: it decides results
        rows = train.take(uids)
        return fit_classifier(rows, val, runtime=own, store=store, name=f"evaluation classifier {k}", **settings)

    verifiers = source.require_verifiers().cross_fit
    trained = cross_fit(verifiers.fold, lambda uids: train.take(uids).images, train_one, source.findings)
    roles = {"guidance": source.guiding, "verifier": _digests(verifiers), "evaluation": _digests(trained)}
    require_disjoint_networks(roles)
    return trained


def _digests(classifiers: CrossFitClassifiers) -> tuple[str, ...]:
    """Return the digests of the classifiers that are networks."""
    return tuple(digest_network(one.net) for one in classifiers.verifiers if isinstance(one, Classifier))
