"""The arms of a comparison from typed inputs: each with the rows it adds, and with its count-matched control."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medlt.classify.sets import TrainingSet
from medlt.classify.train import Settings
from medlt.config import CONTROL_OF
from medlt.evaluation.arms import REAL, Arm, HeldOutRows, Role, dosed, duplicated, relabelled
from medlt.evaluation.sources import SourceImages
from medlt.types import InputError

OWN = ("loss", "course", "sampling", "mixup", "augment", "tau_norm", "mix")
"""Settings of `medlt.classify.train.fit` that an arm may have of its own."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmSpec:
    """What is asked of one arm; the fields of a row of the config. None is as all arms have it.

    source: the source whose images it adds; dose: images of a finding, times its train positives, None for all; best:
    the share of a finding's images that are kept, those its judge is surest of; labels: soft as they are, hard 0 or 1,
    or judged by the source's judges; duplicate: real parents in place of the images; mix: share of each batch drawn
    from the added rows; weight: loss weight of an added row; control: the name of its control, which is trained beside
    it, "" for a name made of the arm's.
    """

    source: str | None = None
    dose: float | None = None
    best: float = 1.0
    labels: Literal["soft", "hard", "judged"] = "soft"
    duplicate: bool = False
    mix: float | None = None
    weight: float | None = None
    loss: str | None = None
    course: str | None = None
    sampling: str | None = None
    mixup: str | None = None
    augment: str | None = None
    tau_norm: bool | None = None
    control: str = ""

    def settings(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of `fit`: those all arms share, and what this one changes."""
        return {**shared, **{name: value for name in OWN if (value := getattr(self, name)) is not None}}


def check_arms(specs: Mapping[str, ArmSpec], settings: Mapping[str, Any]) -> None:
    """Raise InputError, before any row is read, for an arm whose settings do not go together.

    settings: of `medlt.classify.train.fit`, shared by all arms.
    """
    for name, spec in {REAL: ArmSpec(), **specs}.items():
        try:
            Settings(**spec.settings(settings))
        except InputError as error:
            raise InputError(f"arms.{name}: {error}") from None


def build_arms(
    specs: Mapping[str, ArmSpec],
    rows: HeldOutRows,
    sources: Mapping[str, SourceImages],
    *,
    settings: Mapping[str, Any],
    weight: float,
) -> list[Arm]:
    """Return real rows alone first, then every arm asked for; one with added images is followed by its control.

    settings: of `medlt.classify.train.fit`, shared by all arms, `mix` among them; weight: loss weight of added rows. An
    arm of a source without a kept image is there and `empty`. Raises InputError for settings that do not go together, a
    dose that leaves no image, judged labels without judges, and a source of other findings.
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
            loss_weight = weight if spec.weight is None else spec.weight
            whole += _with_added(name, spec, chosen, rows, _fitting(spec.source, sources, rows), loss_weight)
    return whole


def _fitting(name: str, sources: Mapping[str, SourceImages], rows: HeldOutRows) -> SourceImages:
    """The source of this name. Raises InputError where there is none, or one of other findings."""
    if name not in sources:
        raise InputError(f"no source named {name!r}; sources: {', '.join(sources) or 'none'}")
    if tuple(sources[name].findings) != tuple(rows.findings):
        told = f"{', '.join(sources[name].findings)}, the real rows {', '.join(rows.findings)}"
        raise InputError(f"source {name} has the findings {told}; use the same in one order")
    return sources[name]


def _about(spec: ArmSpec, settings: Mapping[str, Any], **added: Any) -> dict[str, Any]:
    """What arms.parquet says of an arm."""
    resolved = asdict(Settings(**settings))
    told = {name: resolved[name] for name in (*OWN, "steps")} | {"use": resolved["course"]}
    own = {"source": spec.source or "", "dose": spec.dose, "best": spec.best, "labels": spec.labels}
    return {**told, **own, "weight": np.nan, "added": 0, "wanted": 0, **added}


def _with_added(
    name: str, spec: ArmSpec, settings: dict[str, Any], rows: HeldOutRows, source: SourceImages, weight: float
) -> list[Arm]:
    """The arm and the same arm with its images replaced by their real parents, or the latter alone if asked for."""
    uids, wanted = _dosed(name, spec, rows, source)
    about = _about(spec, settings, added=len(uids), wanted=wanted, weight=weight)
    made = copies = None
    if uids:
        copies = duplicated(source.kept.loc[uids], rows.train, weight)
        if spec.duplicate and spec.labels == "judged":
            copies = _judged_copies(copies, source, uids)
    if spec.duplicate:
        return [Arm(name, "control", settings, copies, REAL, about)]
    if uids:
        made = _made(source, uids, spec.labels, int(rows.train.images.shape[-1]), weight)
    control = spec.control or f"{CONTROL_OF}{name}"
    return [
        Arm(name, "synthetic", settings, made, control, about),
        Arm(control, "control", settings, copies, REAL, about | {"labels": "soft"}),
    ]


def _dosed(name: str, spec: ArmSpec, rows: HeldOutRows, source: SourceImages) -> tuple[list[str], int]:
    """Uids of the images an arm is given, none of an empty source, and how many its dose asks for."""
    if source.empty:
        log.warning("arms.%s: no image of source %s was kept, so there is nothing to train", name, source.name)
        return [], 0
    uids, wanted = dosed(source.kept, rows.positives(), spec.dose, spec.best)
    if not uids:
        told = f"dose {spec.dose}, best {spec.best} leave no image of source {spec.source}"
        raise InputError(f"arms.{name}: {told}; raise them")
    if len(uids) < wanted:
        log.warning("arms.%s: its dose asks for %d images, %s has %d of them", name, wanted, spec.source, len(uids))
    return uids, wanted


def _made(source: SourceImages, uids: list[str], labels: str, size: int, weight: float) -> TrainingSet:
    """Synthetic rows as the classifier sees them."""
    said = None
    if labels == "judged":
        known = source.verified()
        said = known.sighted(source.judged(known.crossfit, known.size, uids), source.kept["fold"])
    told = relabelled(source.labels.loc[uids], labels, said).to_numpy(np.float32)
    return TrainingSet(source.images(size, uids), told, np.full(len(uids), weight, np.float32), tuple(uids))


def _judged_copies(copies: TrainingSet, source: SourceImages, uids: list[str]) -> TrainingSet:
    """Real parents under the labels that the judge which never saw them gives: distillation without synthesis."""
    parents = source.kept.loc[uids, "parent_a" if "parent_a" in source.kept else "like"]
    labels = source.verified().held_out().loc[parents, source.findings]
    return TrainingSet(copies.images, labels.to_numpy(np.float32), copies.weights, copies.uids)
