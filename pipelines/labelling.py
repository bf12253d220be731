"""Is every label right? What judges say that neither guided the images nor chose them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from medlt.chance import seed_of
from medlt.checks.apart import apart, digest_network
from medlt.checks.folds import Crossfit, crossfit
from medlt.classify.train import Classifier, fit
from medlt.evaluation.agreement import agreement, confusion, filtering, sighted
from medlt.files import write_table
from medlt.runs import Experiment
from pipelines.sourcing import Source
from pipelines.stages import Collection, Progress


def consistency(run: Experiment, real: Collection, given: Sequence[Source], progress: Progress) -> None:
    """agreement.parquet, confusion.parquet, filtering.parquet and rejects.parquet, a block a source."""
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in ("agreement", "confusion", "filtering", "rejects")}
    for source in given:
        for name, table in _of(run, real, source, progress):
            tables[name].append(table.assign(source=source.name))
    for name, parts in tables.items():
        if parts:
            write_table(run.path(f"{name}.parquet"), pd.concat(parts, ignore_index=True))
        elif (old := run.path(f"{name}.parquet")).exists():  # of sources that were taken out
            run.path("earlier").mkdir(exist_ok=True)
            old.replace(run.path("earlier", old.name))


def _of(run: Experiment, real: Collection, source: Source, progress: Progress) -> Iterator[tuple[str, pd.DataFrame]]:
    """(table, its rows) of one source. What a judge cannot know, as it never saw the finding, is unknown."""
    judges, fold = _reporters(run, real, source, progress), source.judges.fold
    labels, made_for = real.train.rows[list(real.train.findings)], source.kept["finding"]
    held_out = sighted(judges.held_out, fold, labels, fold)
    verifying = sighted(source.judges.held_out, fold, labels, fold)
    size = (run.config.reporter or run.config.classifier).size
    scores = source.judged(judges, size, list(source.kept.index))
    scores = sighted(scores, source.kept["fold"], labels, fold)
    yield "agreement", agreement(held_out, labels, scores, made_for)
    yield "confusion", confusion(held_out, labels, scores, made_for)
    yield "filtering", filtering(verifying, held_out, labels, source.kept["judge"], scores, made_for)
    turned = source.findings[~source.findings["passed"]].groupby("check").size()
    yield "rejects", turned.rename("images").reset_index().assign(planned=source.planned)


def _reporters(run: Experiment, real: Collection, source: Source, progress: Progress) -> Crossfit:
    """Judges of the same folds as the source's, of other seeds, so that they too saw no parent of what they judge.
    Raises InputError where one of them had another role."""
    config = run.config
    chosen = config.reporter or config.classifier
    options = chosen.model_dump(exclude={"size"})
    train, val = (real.training_set(split, chosen.size) for split in ("train", "val"))
    fold = source.judges.fold
    with run.stage("reporters") as folder:

        def judge(uids: Sequence[str], k: int) -> Classifier:
            seed, name = seed_of(config.seed, "reporter", k), f"reporting judge {k}"
            return fit(
                train.take(uids), val, folder=folder, name=name, progress=progress, seed=seed, device=config.device,
                **options,
            )  # fmt: skip

        found = crossfit(fold, lambda uids: train.take(uids).images, judge, real.train.findings)
    reporting = tuple(digest_network(judge.net) for judge in found.judges if isinstance(judge, Classifier))
    apart({"guiding": source.guiding, "verifying": source.verifying, "reporting": reporting})
    return found
