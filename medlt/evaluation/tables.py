"""The tables of a comparison, from the predictions of all arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pandas as pd

from medlt.evaluation.arms import REAL, Arm, ArmScores, ExperimentRows
from medlt.evaluation.benchmark import benchmark_table
from medlt.evaluation.confounding import confounding_table
from medlt.evaluation.engine import TrainedArms
from medlt.evaluation.fingerprint import CodedImages, fingerprint_table
from medlt.evaluation.length import TrainingLength
from medlt.evaluation.subgroups import ATTRIBUTES, subgroups
from medlt.evaluation.verdict import compare_arms, comparison_pairs, score_table
from medlt.metrics.calibration import reliability
from medlt.rng import numpy_generator

PILOT = "pilot"


@dataclass(frozen=True)
class Tables:
    """The tables of a comparison; docs/reference/files.md lists their columns."""

    scores: pd.DataFrame
    comparisons: pd.DataFrame
    reliability: pd.DataFrame
    subgroups: pd.DataFrame
    fingerprints: pd.DataFrame
    learning_curves: pd.DataFrame
    confounding: pd.DataFrame
    benchmark: pd.DataFrame


NAMES = tuple(one.name for one in fields(Tables))


@dataclass(frozen=True)
class Setup:
    """What was decided before the arms were trained.

    length: their steps, None if not known; coded: the images of the fingerprint, as given to
    `medlt.evaluation.engine.train_arms`; choices: arm -> share and weight of its added rows that validation chose.
    """

    length: TrainingLength | None = None
    coded: CodedImages = field(default_factory=CodedImages)
    choices: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConclusionOptions:
    """ConclusionOptions of `medlt.evaluation.conclude.conclude`."""

    n_bootstrap: int
    seed: int
    primary_arm: str | None
    setup: Setup


def control_of(arms: Sequence[Arm], name: str) -> str:
    """Return the control of the arm of this name."""
    return next(arm.control for arm in arms if arm.name == name)


def all_tables(
    rows: ExperimentRows, arms: Sequence[Arm], tested: ArmScores, trained: TrainedArms, primary: str | None,
    best_without: str, options: ConclusionOptions,
) -> Tables:  # fmt: skip
    """Return scores and differences of all arms; reliability and subgroups of the real, control and primary arms."""
    detailed = [REAL, primary, control_of(arms, primary)] if primary else [REAL]
    pairs = comparison_pairs(arms, primary, best_without)
    bootstrap: dict[str, Any] = {"n_bootstrap": options.n_bootstrap, "seed": options.seed}
    return Tables(
        score_table(tested, rows.groups),
        compare_arms(tested, pairs, rows.groups, **bootstrap),
        _reliability(tested, detailed),
        _subgroups(rows, tested, detailed, options),
        fingerprint_table(rows, tested.val, trained.coded, options.setup.coded, **bootstrap),
        learning_curves(trained, options.setup.length),
        confounding_table(tested, rows.attributes, [name for name in detailed if name]),
        benchmark_table(rows, tested, (primary, control_of(arms, primary)) if primary else None, **bootstrap),
    )


def arm_table(arms: Sequence[Arm], tested: ArmScores | None, tail: Sequence[str], primary: str | None) -> pd.DataFrame:
    """Return a row an arm: its settings and its tail macro AP on validation, NaN for an arm that was not trained."""
    rows = []
    for arm in arms:
        value = tested.validation_ap(arm.name, tail) if tested is not None and arm.name in tested.val else None
        mean = float("nan") if value is None else float(value.mean())
        spread = float("nan") if value is None or len(value) < 2 else float(value.std(ddof=1))
        own = {"arm": arm.name, "role": arm.role, "control": arm.control, "digest": arm.digest()}
        numbers = {"primary": arm.name == primary, "val_tail_ap": mean, "val_tail_ap_sd": spread}
        rows.append(own | dict(arm.about) | numbers)
    return pd.DataFrame(rows).astype({"synthetic_ratio": float})


def learning_curves(trained: TrainedArms, length: TrainingLength | None) -> pd.DataFrame:
    """Return validation macro AP by step: columns arm, seed, step, val_macro_ap. The pilot is an arm of its own."""
    curves: dict[str, Mapping[int, Any]] = {
        name: dict(zip(trained.seeds, own, strict=True)) for name, own in trained.curves.items()
    }
    if length is not None and length.chosen_by == "plateau":
        curves = {PILOT: dict(enumerate(length.curves))} | curves
    lines = [
        (name, seed, step, value)
        for name, own in curves.items()
        for seed, curve in own.items()
        for step, value in curve
    ]
    return pd.DataFrame(lines, columns=["arm", "seed", "step", "val_macro_ap"])


def _reliability(tested: ArmScores, names: Sequence[str]) -> pd.DataFrame:
    """Return the reliability of the named arms, over all seeds together, a block an arm."""
    tables = {name: reliability(tested.truth, tested.scores[name], tested.patients, tested.findings) for name in names}
    return pd.concat([table.assign(arm=name) for name, table in tables.items()], ignore_index=True)


def _subgroups(
    rows: ExperimentRows, tested: ArmScores, names: Sequence[str], options: ConclusionOptions
) -> pd.DataFrame:
    """Return the subgroups of the named arms by the known attributes of the test rows, a block an arm."""
    known = rows.attributes[[name for name in ATTRIBUTES if name in rows.attributes]].reset_index(drop=True)
    parts = [
        subgroups(
            tested.truth, tested.scores[name], tested.patients, known, tested.findings, rows.tail,
            n_bootstrap=options.n_bootstrap, rng=numpy_generator(options.seed, "subgroups"),
        ).assign(arm=name)
        for name in names
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)
