"""Is every label right? What judges say that neither guided the images nor chose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.checks.apart import apart, digest_network
from medlt.checks.folds import Crossfit, crossfit
from medlt.classify.classifier import Classifier
from medlt.classify.sets import TrainingSet
from medlt.classify.train import fit
from medlt.evaluation.agreement import agreement, confusion, filtering
from medlt.evaluation.conclude import set_aside
from medlt.evaluation.sources import SourceImages
from medlt.files import write_table
from medlt.store import Store
from medlt.training.runtime import Runtime

TABLES = ("agreement", "confusion", "filtering", "rejects")


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
    """Train reporting judges for every source and write agreement, confusion, filtering and rejects.parquet.

    train, val: the real rows at the size the judges take; settings: of `medlt.classify.train.fit`. A table has a block
    a source, named in the column `source`; one without a kept image has rejects only. Tables of sources that are gone
    are moved to superseded/. Raises InputError where a reporting judge had another role.
    """
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for source in sources:
        for name, table in _tables(source, train, val, settings, runtime, store):
            parts[name].append(table.assign(source=source.name))
    found = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items() if tables}
    for name in TABLES:
        if name in found:
            write_table(Path(folder) / f"{name}.parquet", found[name])
        else:
            set_aside(Path(folder), f"{name}.parquet")
    return found


def _tables(
    source: SourceImages,
    train: TrainingSet,
    val: TrainingSet,
    settings: Mapping[str, Any],
    runtime: Runtime,
    store: Store,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(table, its rows) of one source. What a judge cannot know, as it never saw the finding, is unknown."""
    if not source.empty:
        known = source.verified()
        judges = reporting_judges(source, train, val, settings=settings, runtime=runtime, store=store)
        labels, made_for = known.labels[source.findings], source.kept["finding"]
        held_out = known.sighted(judges.held_out, known.crossfit.fold)
        scores = source.judged(judges, int(train.images.shape[-1]), list(source.kept.index))
        scores = known.sighted(scores, source.kept["fold"])
        yield "agreement", agreement(held_out, labels, scores, made_for)
        yield "confusion", confusion(held_out, labels, scores, made_for)
        yield "filtering", filtering(known.held_out(), held_out, labels, source.kept["judge"], scores, made_for)
    turned = source.checks[~source.checks["passed"].astype(bool)].groupby("check").size()
    yield "rejects", turned.rename("images").rename_axis("check").reset_index().assign(planned=source.planned)


def reporting_judges(
    source: SourceImages,
    train: TrainingSet,
    val: TrainingSet,
    *,
    settings: Mapping[str, Any],
    runtime: Runtime,
    store: Store,
) -> Crossfit:
    """Train judges of the same folds as the source's, of other seeds: they too saw no parent of what they judge.

    Raises InputError where one of them had another role.
    """

    def judge(uids: Sequence[str], k: int) -> Classifier:
        own = runtime.seeded("reporter", k)
        rows = train.take(uids)
        return fit(rows, val, runtime=own, store=store, name=f"reporting judge {k}", **settings)

    verifying = source.verified().crossfit
    found = crossfit(verifying.fold, lambda uids: train.take(uids).images, judge, source.findings)
    roles = {"guiding": source.guiding, "verifying": _named(verifying), "reporting": _named(found)}
    apart(roles)
    return found


def _named(judges: Crossfit) -> tuple[str, ...]:
    """Digests of the judges that are networks."""
    return tuple(digest_network(judge.net) for judge in judges.judges if isinstance(judge, Classifier))
