"""The arms of an experiment from its config: each with the rows it adds, and with its count-matched control."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from medlt import config as configs
from medlt.classify.sets import TrainingSet
from medlt.classify.train import Settings
from medlt.evaluation.agreement import sighted
from medlt.evaluation.arms import REAL, Arm, Role, dosed, duplicated, relabelled
from medlt.types import InputError
from pipelines.sourcing import Source
from pipelines.stages import Collection

OWN = ("loss", "course", "sampling", "mixup", "augment", "tau_norm")
log = logging.getLogger(__name__)


def look(config: configs.VerdictConfig) -> None:
    """Raises InputError, before any row is read, for an arm whose settings do not go together."""
    for name, chosen in {REAL: configs.ArmConfig(), **config.arms}.items():
        try:
            Settings(**_settings(config, chosen))
        except InputError as error:
            raise InputError(f"arms.{name}: {error}") from None


def arms(config: configs.VerdictConfig, real: Collection, train: TrainingSet, given: Mapping[str, Source]) -> list[Arm]:
    """Real rows alone first, then every arm of the config, each with added images followed by its control."""
    whole: list[Arm] = []
    for name, chosen in {REAL: configs.ArmConfig(), **config.arms}.items():
        settings = _settings(config, chosen)
        if chosen.source is None:
            role: Role = "real" if name == REAL else "reweighted"
            whole.append(
                Arm(name, role, settings, about=_about(chosen, settings), control="" if name == REAL else REAL)
            )
        else:
            whole += _with_added(name, chosen, settings, config, real, train, given[chosen.source])
    return whole


def _settings(config: configs.VerdictConfig, chosen: configs.ArmConfig) -> dict[str, Any]:
    """Settings of `fit`: the classifier's, then what the arm changes."""
    changed = {name: value for name in OWN if (value := getattr(chosen, name)) is not None}
    mix = config.evaluation.mix if chosen.mix is None else chosen.mix
    return {**config.classifier.model_dump(exclude={"size"}), "mix": mix, **changed}


def _about(chosen: configs.ArmConfig, settings: Mapping[str, Any], **added: Any) -> dict[str, Any]:
    """What arms.parquet says of an arm."""
    told = {name: settings[name] for name in (*OWN, "steps")} | {"use": settings["course"], "mix": settings["mix"]}
    own = {"source": chosen.source or "", "dose": chosen.dose, "best": chosen.best, "labels": chosen.labels}
    return {**told, **own, "weight": np.nan, "added": 0, "wanted": 0, **added}


def _with_added(
    name: str, chosen: configs.ArmConfig, settings: dict[str, Any], config: configs.VerdictConfig, real: Collection,
    train: TrainingSet, source: Source,
) -> list[Arm]:  # fmt: skip
    """The arm and the same arm with its images replaced by their real parents, or the latter alone if asked for."""
    positives = {str(k): int(v) for k, v in real.train.counts()["positive"].items()}
    uids, wanted = dosed(source.kept, positives, chosen.dose, chosen.best)
    if not uids:
        raise InputError(
            f"arms.{name}: dose {chosen.dose}, best {chosen.best} leave no image of source {chosen.source}; raise them"
        )
    if len(uids) < wanted:
        log.warning("arms.%s: its dose asks for %d images, %s has %d of them", name, wanted, chosen.source, len(uids))
    weight = config.evaluation.weight if chosen.weight is None else chosen.weight
    told = {"added": len(uids), "wanted": wanted, "weight": weight}
    copies = duplicated(source.kept.loc[uids], train, weight)
    if chosen.duplicate:
        if chosen.labels == "judged":
            copies = _judged_copies(copies, source.kept.loc[uids], source)
        return [Arm(name, "control", settings, copies, REAL, _about(chosen, settings, **told))]
    made = _made(source, uids, chosen.labels, config.classifier.size, weight)
    control = f"{configs.CONTROL_OF}{name}"
    return [
        Arm(name, "synthetic", settings, made, control, _about(chosen, settings, **told)),
        Arm(control, "control", settings, copies, REAL, _about(chosen, settings, **told) | {"labels": "soft"}),
    ]


def _made(source: Source, uids: list[str], labels: str, size: int, weight: float) -> TrainingSet:
    """Synthetic rows as the classifier sees them."""
    names = list(source.made.findings)
    told = relabelled(source.made.rows.loc[uids, names], labels, _judged(source, uids) if labels == "judged" else None)
    pixels = source.images(size, uids)
    return TrainingSet(pixels, told.to_numpy(np.float32), np.full(len(uids), weight, np.float32), tuple(uids))


def _judged(source: Source, uids: list[str]) -> pd.DataFrame:
    """Probabilities [uid, finding] of synthetic images by the verifying judge of each one's fold."""
    return _sighted(source.judged(source.judges, source.run.config.classifier.size, uids), source.kept["fold"], source)


def _sighted(scores: pd.DataFrame, judge: pd.Series, source: Source) -> pd.DataFrame:
    """Scores of the verifying judges, NaN where one never saw the finding both present and absent."""
    return sighted(scores, judge, source.learnt.rows[list(source.made.findings)], source.judges.fold)


def _judged_copies(copies: TrainingSet, kept: pd.DataFrame, source: Source) -> TrainingSet:
    """Real parents under the labels that the judge which never saw them gives: distillation without synthesis."""
    parents = kept["parent_a" if "parent_a" in kept else "like"]
    labels = _sighted(source.judges.held_out, source.judges.fold, source).loc[parents, list(source.made.findings)]
    return TrainingSet(copies.images, labels.to_numpy(np.float32), copies.weights, copies.uids)
