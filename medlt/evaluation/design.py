"""Build the arms of a comparison from typed inputs, each with its added rows and its count-matched control."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medlt.classify.sets import TrainingSet
from medlt.classify.train import ClassifierSettings
from medlt.config import CONTROL_OF
from medlt.evaluation.arms import REAL, Arm, ExperimentRows, Role, count_matched_control, relabelled, select_by_ratio
from medlt.evaluation.sources import SourceImages
from medlt.types import InputError

OWN = ("loss", "training_strategy", "sampling", "mixup", "augment", "tau_norm", "synthetic_fraction")
"""Fields of ClassifierSettings (`medlt.classify.train.fit_classifier`) that an arm may override."""

TUNED = ("synthetic_fraction", "synthetic_weight")
"""Settings of added rows that validation chooses where an arm does not give them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmSpec:
    """Settings of one arm, as in a row of `arms` of the config. None takes the value that all arms share.

    source: source of the added images; synthetic_ratio: added images of a finding per train positive, None for all;
    keep_top: share of a finding's images that are used, those with the highest verifier probability; labels: soft
    (unchanged), hard (0 or 1) or verifier (the verifiers' probabilities); real_duplicates: add the real parents instead
    of the images; synthetic_fraction: share of each batch drawn from the added rows; synthetic_weight: loss weight of
    an added row; control: name of its control, "" for a name derived from the arm's.
    """

    source: str | None = None
    synthetic_ratio: float | None = None
    keep_top: float = 1.0
    labels: Literal["soft", "hard", "verifier"] = "soft"
    real_duplicates: bool = False
    synthetic_fraction: float | None = None
    synthetic_weight: float | None = None
    loss: str | None = None
    training_strategy: str | None = None
    sampling: str | None = None
    mixup: str | None = None
    augment: str | None = None
    tau_norm: bool | None = None
    control: str = ""

    def settings(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of `fit_classifier`: the shared ones, with the changes of this arm."""
        return {**shared, **{name: value for name in OWN if (value := getattr(self, name)) is not None}}


def check_arms(specs: Mapping[str, ArmSpec], settings: Mapping[str, Any]) -> None:
    """Raise InputError for an arm with contradictory settings. No row is read.

    settings: of `medlt.classify.train.fit_classifier`, shared by all arms.
    """
    for name, spec in {REAL: ArmSpec(), **specs}.items():
        try:
            ClassifierSettings(**spec.settings(settings))
        except InputError as error:
            raise InputError(f"arms.{name}: {error}") from None


def build_arms(
    specs: Mapping[str, ArmSpec],
    rows: ExperimentRows,
    sources: Mapping[str, SourceImages],
    *,
    settings: Mapping[str, Any],
    weight: float,
) -> list[Arm]:
    """Return the arm of real rows alone, then every requested arm; an arm with added images is followed by its control.

    settings: those of `medlt.classify.train.fit_classifier` that all arms share, with `synthetic_fraction`; weight:
    loss weight of added rows. An arm of a source without kept images is `empty`. Raises InputError for contradictory
    settings, a synthetic ratio that leaves no image, labels `verifier` without verifiers, and a source with other
    findings.
    """
    check_arms(specs, settings)
    whole: list[Arm] = []
    for name, spec in {REAL: ArmSpec(), **specs}.items():
        chosen = spec.settings(settings)
        if spec.source is None:
            role: Role = "real" if name == REAL else "reweighted"
            control = "" if name == REAL else REAL
            whole.append(Arm(name, role, chosen, control=control, about=_about(spec, chosen)))
        else:
            loss_weight = weight if spec.synthetic_weight is None else spec.synthetic_weight
            whole += _with_added(name, spec, chosen, rows, _fitting(spec.source, sources, rows), loss_weight)
    return whole


def _fitting(name: str, sources: Mapping[str, SourceImages], rows: ExperimentRows) -> SourceImages:
    """Return the source of this name. Raises InputError if it does not exist or has other findings."""
    if name not in sources:
        raise InputError(f"no source named {name!r}; sources: {', '.join(sources) or 'none'}")
    if tuple(sources[name].findings) != tuple(rows.findings):
        both = f"{', '.join(sources[name].findings)}, the real rows {', '.join(rows.findings)}"
        raise InputError(f"source {name} has the findings {both}; use the same findings in one order")
    return sources[name]


def _about(spec: ArmSpec, settings: Mapping[str, Any], **added: Any) -> dict[str, Any]:
    """Return the columns of arms.parquet that describe an arm."""
    resolved = ClassifierSettings(**settings).identity()
    trained = {name: resolved[name] for name in (*OWN, "steps")}
    own = {name: getattr(spec, name) for name in ("synthetic_ratio", "keep_top", "labels")}
    return {"source": spec.source or "", **trained, **own, "synthetic_weight": np.nan, "added": 0, "wanted": 0, **added}


def _with_added(
    name: str, spec: ArmSpec, settings: dict[str, Any], rows: ExperimentRows, source: SourceImages, weight: float
) -> list[Arm]:
    """Return the arm and its control, or the control alone if `real_duplicates` is set."""
    uids, wanted = _selected(name, spec, rows, source)
    about = _about(spec, settings, added=len(uids), wanted=wanted, synthetic_weight=weight)
    free = _free(spec, settings)
    made = copies = None
    if uids:
        copies = count_matched_control(source.kept.loc[uids], rows.train, weight)
        if spec.real_duplicates and spec.labels == "verifier":
            copies = _distilled(copies, source, uids)
    if spec.real_duplicates:
        return [Arm(name, "control", settings, copies, REAL, about, free)]
    if uids:
        made = _made(source, uids, spec.labels, int(rows.train.images.shape[-1]), weight)
    control = spec.control or f"{CONTROL_OF}{name}"
    return [
        Arm(name, "synthetic", settings, made, control, about, free),
        Arm(control, "control", settings, copies, REAL, about | {"labels": "soft"}, free),
    ]


def _free(spec: ArmSpec, settings: Mapping[str, Any]) -> frozenset[str]:
    """Return which of the share and weight of added rows the arm leaves open; none where these rows train alone."""
    alone = settings.get("training_strategy") == "pretrain"
    return frozenset() if alone else frozenset(name for name in TUNED if getattr(spec, name) is None)


def _selected(name: str, spec: ArmSpec, rows: ExperimentRows, source: SourceImages) -> tuple[list[str], int]:
    """Return the uids of the images of an arm, none of an empty source, and how many images it requires."""
    if source.empty:
        log.warning("arms.%s: no image of source %s was kept, so there is nothing to train", name, source.name)
        return [], 0
    uids, wanted = select_by_ratio(source.kept, rows.positives(), spec.synthetic_ratio, spec.keep_top)
    if not uids:
        given = f"synthetic_ratio {spec.synthetic_ratio} and keep_top {spec.keep_top}"
        raise InputError(f"arms.{name}: {given} leave no image of source {spec.source}; raise them")
    if len(uids) < wanted:
        text = "arms.%s: synthetic_ratio requires %d images, source %s has %d of them"
        log.warning(text, name, wanted, spec.source, len(uids))
    return uids, wanted


def _made(source: SourceImages, uids: list[str], labels: str, size: int, weight: float) -> TrainingSet:
    """Return the synthetic rows as a training set."""
    verified = None
    if labels == "verifier":
        known = source.require_verifiers()
        verified = known.mask_unobserved(source.predict(known.cross_fit, known.size, uids), source.kept["fold"])
    used = relabelled(source.labels.loc[uids], labels, verified).to_numpy(np.float32)
    return TrainingSet(source.images(size, uids), used, np.full(len(uids), weight, np.float32), tuple(uids))


def _distilled(copies: TrainingSet, source: SourceImages, uids: list[str]) -> TrainingSet:
    """Return the real parents with labels by the verifier of their fold: distillation without synthesis."""
    parents = source.kept.loc[uids, "tail_parent" if "tail_parent" in source.kept else "label_source"]
    labels = source.require_verifiers().held_out().loc[parents, source.findings]
    return TrainingSet(copies.images, labels.to_numpy(np.float32), copies.weights, copies.uids)
