"""Where an experiment's synthetic images come from: finished runs, made first where only their config is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medlt import config as configs
from medlt.checks.apart import digest_network
from medlt.checks.consistency import LabelConsistency
from medlt.checks.folds import Crossfit
from medlt.classify.train import Classifier
from medlt.data.manifest import Manifest
from medlt.evaluation import provenance
from medlt.runs import Run
from medlt.types import InputError
from pipelines import learning, opening, recipe
from pipelines.stages import Collection, Progress, quiet


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

    @property
    def verifying(self) -> tuple[str, ...]:
        """Digests of the judges that chose the images."""
        return tuple(digest_network(judge.net) for judge in self.judges.judges if isinstance(judge, Classifier))


def sources(config: configs.VerdictConfig, real: Collection, progress: Progress) -> dict[str, Source]:
    """Every source, its images made if need be. Raises InputError for one that does not fit the experiment."""
    return {name: _source(name, given, real, progress) for name, given in config.sources.items()}


def _source(name: str, given: configs.Source, real: Collection, progress: Progress) -> Source:
    if given.config is not None:
        config = configs.load(given.config, given.set)
        if not (config.out / "manifest.parquet").is_file():
            recipe.augment(config, progress)
        if (config.out / "config.yaml").read_text() != configs.dump(config):
            raise InputError(
                f"sources.{name}: {config.out} was made by another config; give it as `run`, or change out"
            )
        return _opened(name, config, real)
    folder = Path(str(given.run))
    if not (written := folder / "config.yaml").is_file():
        raise InputError(f"sources.{name}: {folder} is no run folder; give one that `medlt augment` made")
    return _opened(name, configs.load(written).model_copy(update={"out": folder}), real)


def _opened(name: str, config: configs.RunConfig, real: Collection) -> Source:
    """What a finished run left, held against the experiment's real rows before anything is trained."""
    run, own = opening.finished(config)
    whole = Manifest.read(config.out / "manifest.parquet")
    made = whole.where(whole.rows["synthetic"] if "synthetic" in whole.rows else pd.Series(False, whole.rows.index))
    findings = pd.read_parquet(config.out / "findings.parquet")
    provenance.require_fit(name, made, own.train, real.manifest)
    judges = learning.judges(run, own, quiet)
    judged = findings[findings["check"] == LabelConsistency.name].set_index("uid")["value"]
    numbers = made.rows[["slot", "fold"]].astype(int)  # beside real rows, which have none, they were floats
    kept = made.rows.assign(judge=judged.reindex(made.rows.index), **numbers)
    planned = len(pd.read_parquet(config.out / "plan.parquet", columns=[]).index)
    return Source(name, run, judges, made, kept, findings, planned, _guiding(run, own, judges))


def _guiding(run: Run, own: Collection, judges: Crossfit) -> tuple[str, ...]:
    """Digests of the classifiers that guided the images, none for a method without."""
    asked = any(isinstance(one, configs.LongtailGuide) and one.weight for one in run.config.method.guides)
    return (digest_network(learning.predictor(run, own, judges, quiet).net),) if asked else ()
