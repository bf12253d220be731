"""Where an experiment's synthetic images come from: finished runs, made first where only their config is given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.checks.apart import digest_network, judged_apart, parents_of
from medlt.checks.consistency import LabelConsistency
from medlt.checks.folds import Crossfit
from medlt.classify.train import Classifier
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation import provenance
from medlt.evaluation.arms import lent
from medlt.runs import Run
from medlt.types import InputError
from pipelines import judging, learning, opening, recipe
from pipelines.stages import Collection, Progress, quiet, threads

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A run's kept images and what made and judged them.

    kept: index uid, the plan's columns, `judge`, the verifying judge's probability of the row's finding, and `fold`.
    """

    name: str
    run: Run
    judges: Crossfit
    made: Manifest
    kept: pd.DataFrame
    findings: pd.DataFrame
    planned: int
    guiding: tuple[str, ...]
    learnt: Manifest
    _decoded: dict[int, Tensor] = field(default_factory=dict)

    def images(self, size: int, uids: Sequence[str]) -> Tensor:
        """Kept images [n,1,size,size], uint8; all are decoded the first time a size is asked for."""
        if size not in self._decoded:
            self._decoded[size] = images(self.made, size)
        return self._decoded[size][torch.from_numpy(self.made.rows.index.get_indexer(list(uids)))]

    def judged(self, judges: Crossfit, size: int, uids: Sequence[str]) -> pd.DataFrame:
        """Probabilities [uid, finding] of kept images, each by the judge of its fold, which saw neither parent."""
        parts = []
        for k, rows in self.kept.loc[list(uids)].groupby("fold"):
            scores = judges.judges[int(str(k))](self.images(size, list(rows.index))).numpy()
            parts.append(pd.DataFrame(scores, index=rows.index, columns=list(self.made.findings)))
        return pd.concat(parts).loc[list(uids)]

    @property
    def verifying(self) -> tuple[str, ...]:
        """Digests of the judges that chose the images."""
        return tuple(digest_network(judge.net) for judge in self.judges.judges if isinstance(judge, Classifier))


def sources(config: configs.VerdictConfig, real: Collection, progress: Progress) -> dict[str, Source]:
    """Every source, its images made if need be. Raises InputError for one that does not fit the experiment."""
    return {name: _source(name, given, real, progress) for name, given in config.sources.items()}


def _source(name: str, given: configs.Source, real: Collection, progress: Progress) -> Source:
    config = opening.source(name, given)
    if not (config.out / "manifest.parquet").is_file():
        recipe.augment(config, progress)
    return _opened(name, config, real)


def _opened(name: str, config: configs.RunConfig, real: Collection) -> Source:
    """What a finished run left, held against the experiment's real rows before anything is trained."""
    run, own = opening.finished(config)
    whole = Manifest.read(config.out / "manifest.parquet")
    made = whole.where(whole.rows["synthetic"] if "synthetic" in whole.rows else pd.Series(False, whole.rows.index))
    findings, planned = (_table(name, config.out / f"{table}.parquet") for table in ("findings", "plan"))
    if config.blind:
        made = Manifest(made.rows.assign(like=lent(made.rows, own.train.rows)), made.findings, made.root)
    provenance.require_fit(name, made, own.train, real.manifest, stopped_by=own.manifest.split("val"))
    with threads(config.threads):  # what was trained is found by their number too
        judges = judging.judges(run, own, quiet, plain=config.blind)
        guiding = _guiding(run, own, judges)
    if not config.blind and any(isinstance(judge, Classifier) and judge.pace for judge in judges.judges):
        log.warning("source %s: the judges that chose its images were not found, they were trained again", name)
    judged = findings[findings["check"] == LabelConsistency.name].set_index("uid")["value"]
    numbers = made.rows[["slot", "fold"]].astype(int)  # beside real rows, which have none, they were floats
    kept = made.rows.assign(judge=judged.reindex(made.rows.index), **numbers)
    if config.blind:  # made beside no judge; each is asked by the one that never saw the real row it is held against
        kept = kept.assign(fold=judges.fold.loc[kept["like"]].to_numpy())
    judged_apart(kept["fold"], judges.seen, parents_of(kept))
    return Source(name, run, judges, made, kept, findings, len(planned), guiding, own.train)


def _table(name: str, path: Path) -> pd.DataFrame:
    """A table of a source's run. Raises InputError if it is not there or damaged."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError):
        raise InputError(f"source {name}: {path} is missing or damaged; finish the run again") from None


def _guiding(run: Run, own: Collection, judges: Crossfit) -> tuple[str, ...]:
    """Digests of the classifiers that guided the images, none for a method without."""
    asked = any(isinstance(one, configs.LongtailGuide) and one.weight for one in run.config.method.guides)
    return (digest_network(learning.predictor(run, own, judges, quiet).net),) if asked else ()
