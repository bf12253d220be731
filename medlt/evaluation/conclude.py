"""Turn the predictions of all arms into tables and a verdict, and write them into a folder.

arms.parquet and verdict.json are always written; scores, comparisons, reliability and subgroups.parquet only if arms
were compared. The verdict of another experiment and damaged files are moved to superseded/.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medlt.evaluation.arms import REAL, Arm, ArmScores, ExperimentRows
from medlt.evaluation.engine import TrainedArms, trainable_arms
from medlt.evaluation.length import TrainingLength
from medlt.evaluation.sight import Sight, margin
from medlt.evaluation.subgroups import ATTRIBUTES, subgroups
from medlt.evaluation.verdict import (
    NOT_KEPT,
    NOTHING,
    compare_arms,
    comparison_entries,
    comparison_entry,
    comparison_pairs,
    decide,
    score_table,
    select_arm,
    selection_rule,
)
from medlt.files import digest, write_json, write_table
from medlt.metrics.calibration import reliability
from medlt.rng import numpy_generator
from medlt.types import InputError

VERDICT = "verdict.json"
SUPERSEDED = "superseded"
TABLES = ("scores", "comparisons", "reliability", "subgroups")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tables:
    """The tables of a comparison; docs/reference/files.md lists their columns."""

    scores: pd.DataFrame
    comparisons: pd.DataFrame
    reliability: pd.DataFrame
    subgroups: pd.DataFrame


@dataclass(frozen=True)
class Conclusion:
    """The record of verdict.json and the tables; `tables` is None if no arm was trained.

    experiments: names of all experiments that were evaluated on these test rows, in order, this one included. Pass them
    to the next `conclude`: the more experiments one test set evaluates, the more of them it favours by chance.
    """

    record: Mapping[str, Any]
    arms: pd.DataFrame
    tables: Tables | None
    experiments: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return helps, harms, no evidence, cannot see or no verdict."""
        return str(self.record["verdict"])

    @property
    def primary(self) -> str | None:
        """Return the arm that the verdict is about."""
        marked = self.arms.loc[self.arms["primary"], "arm"]
        return str(marked.iloc[0]) if len(marked) else None


def conclude(
    rows: ExperimentRows,
    arms: Sequence[Arm],
    trained: TrainedArms,
    folder: Path,
    *,
    n_bootstrap: int,
    seed: int,
    primary_arm: str | None = None,
    experiments: Sequence[str] = (),
    length: TrainingLength | None = None,
) -> Conclusion:
    """Select an arm on validation, compare it with its control on test, and write tables and verdict into `folder`.

    n_bootstrap: resamples of the patients, seeded by `seed`; primary_arm: the arm that the verdict is about, None for
    the best on validation; experiments: those of the previous `Conclusion` on these test rows; length: the steps of the
    arms, None if not known. Raises InputError if `primary_arm` has no synthetic images or an arm was not trained.
    """
    synthetic = [arm.name for arm in arms if arm.role == "synthetic"]
    if primary_arm is not None and primary_arm not in synthetic:
        choices = ", ".join(synthetic) or "none"
        raise InputError(f"arm {primary_arm!r} has no synthetic images; set primary_arm to one of: {choices}")
    if length is not None:
        length = length.with_curves(trained.curves.get(REAL, ()))
    options = _Options(n_bootstrap, seed, primary_arm, length)
    name = experiment(rows, arms, trained.seeds, n_bootstrap=n_bootstrap, seed=seed, primary_arm=primary_arm)
    compared = trainable_arms(arms)
    evaluated = tuple(dict.fromkeys([*experiments, *([name] if compared else [])]))
    tested = _tested(rows, compared, trained)
    primary = _primary(arms, compared, tested, rows.tail, primary_arm)
    tables, verdict = None, _undecided(arms, primary)
    if tested is not None:
        tables, verdict = _compared(rows, compared, tested, primary, options, verdict)
    verdict |= {"experiment": name, "test_set_evaluations": len(evaluated)}
    conclusion = Conclusion(verdict, _arm_table(arms, tested, rows.tail, primary), tables, evaluated)
    _write(conclusion, Path(folder))
    return conclusion


@dataclass(frozen=True)
class _Options:
    """Options of `conclude`."""

    n_bootstrap: int
    seed: int
    primary_arm: str | None
    length: TrainingLength | None


def candidates(arms: Sequence[Arm]) -> list[str]:
    """Return the arms that may be selected: those with synthetic images whose labels do not come from verifiers.

    An arm with labels of the verifiers differs from its control in the labels as well as in the images.
    """
    own = (arm for arm in arms if arm.role == "synthetic" and not arm.empty)
    return [arm.name for arm in own if arm.about.get("labels") != "verifier"]


def experiment(
    rows: ExperimentRows,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    n_bootstrap: int,
    seed: int,
    primary_arm: str | None,
) -> str:
    """Return 16 hex digits that identify an experiment: its rows, arms, seeds and options of `conclude`."""
    trained = [[arm.name, arm.role, arm.control, arm.digest()] for arm in arms]
    return digest(rows.digest(), trained, list(seeds), n_bootstrap, seed, primary_arm)


def _tested(rows: ExperimentRows, arms: Sequence[Arm], trained: TrainedArms) -> ArmScores | None:
    """Return the predictions of the arms with the true labels; None without arms."""
    if not arms:
        return None
    if lost := [arm.name for arm in arms if arm.name not in trained.test]:
        raise InputError(f"arm {lost[0]!r} was not trained; train all arms before concluding")
    test, val = ({arm.name: scores[arm.name] for arm in arms} for scores in (trained.test, trained.val))
    patients = [str(patient) for patient in rows.patients]
    single = any(arm.settings.get("task") == "single-label" for arm in arms)
    return ArmScores(test, rows.test.labels, patients, rows.findings, val, rows.val.labels, single, rows.simulated)


def _primary(
    arms: Sequence[Arm], compared: Sequence[Arm], tested: ArmScores | None, tail: Sequence[str], requested: str | None
) -> str | None:
    """Return the arm that the verdict is about; None without candidates or if the requested arm has no image."""
    if tested is None or any(arm.name == requested and arm.empty for arm in arms):
        return None
    return requested or select_arm(tested, candidates(compared), tail)


def _chosen_by(tested: ArmScores, compared: Sequence[Arm], tail: Sequence[str], requested: str | None) -> str:
    """Return how the primary arm was selected."""
    if requested is not None:
        return "the config"
    return selection_rule(tested, tail) if len(candidates(compared)) > 1 else "the only candidate"


def _undecided(arms: Sequence[Arm], primary: str | None) -> dict[str, Any]:
    """Return the verdict without a comparison: no image was kept, or no arm has a source."""
    if primary is None and any(arm.role == "synthetic" and arm.empty for arm in arms):
        return {"verdict": "no evidence", "sentence": NOT_KEPT, "comparison": None}
    return {"verdict": "no verdict", "sentence": NOTHING, "comparison": None}


def _compared(
    rows: ExperimentRows,
    arms: Sequence[Arm],
    tested: ArmScores,
    primary: str | None,
    options: _Options,
    undecided: dict[str, Any],
) -> tuple[Tables, dict[str, Any]]:
    """Return the tables and the verdict; `undecided` is the verdict without a primary arm."""
    without = [arm.name for arm in arms if arm.role in ("real", "reweighted")]
    best_without = select_arm(tested, without, rows.tail) or REAL
    sight = Sight(margin(tested, rows.tail, n_bootstrap=options.n_bootstrap, seed=options.seed), options.length)
    tables, verdict = _tables(rows, arms, tested, primary, best_without, options), undecided
    tables = replace(tables, comparisons=sight.read(tables.comparisons))
    if primary is not None:
        verdict = decide(tables.comparisons, tested, primary, _control(arms, primary), sight.problems)
        verdict |= {"against_real": comparison_entry(tables.comparisons, tested, primary, best_without)}
        verdict |= {"chosen_by": _chosen_by(tested, arms, rows.tail, options.primary_arm)}
    return tables, verdict | sight.record() | {"arms": comparison_entries(tables.comparisons, arms, tested, rows.tail)}


def _control(arms: Sequence[Arm], name: str) -> str:
    return next(arm.control for arm in arms if arm.name == name)


def _tables(
    rows: ExperimentRows,
    arms: Sequence[Arm],
    tested: ArmScores,
    primary: str | None,
    best_without: str,
    options: _Options,
) -> Tables:
    """Return scores and differences of all arms; reliability and subgroups of the real, control and primary arms."""
    detailed = [REAL, primary, _control(arms, primary)] if primary else [REAL]
    pairs = comparison_pairs(arms, primary, best_without)
    return Tables(
        score_table(tested, rows.groups),
        compare_arms(tested, pairs, rows.groups, n_bootstrap=options.n_bootstrap, seed=options.seed),
        _reliability(tested, detailed),
        _subgroups(rows, tested, detailed, options),
    )


def _arm_table(arms: Sequence[Arm], tested: ArmScores | None, tail: Sequence[str], primary: str | None) -> pd.DataFrame:
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


def _reliability(tested: ArmScores, names: Sequence[str]) -> pd.DataFrame:
    """Return the reliability of the named arms, over all seeds together, a block an arm."""
    tables = {name: reliability(tested.truth, tested.scores[name], tested.patients, tested.findings) for name in names}
    return pd.concat([table.assign(arm=name) for name, table in tables.items()], ignore_index=True)


def _subgroups(rows: ExperimentRows, tested: ArmScores, names: Sequence[str], options: _Options) -> pd.DataFrame:
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


def _write(conclusion: Conclusion, folder: Path) -> None:
    """Write all tables, then the verdict; move those of an earlier experiment away first."""
    _supersede(folder, str(conclusion.record["experiment"]))
    write_table(folder / "arms.parquet", conclusion.arms)
    for name in TABLES:
        if conclusion.tables is not None:
            write_table(folder / f"{name}.parquet", getattr(conclusion.tables, name))
        else:
            set_aside(folder, f"{name}.parquet")
    write_json(folder / VERDICT, dict(conclusion.record))


def _supersede(folder: Path, name: str) -> None:
    """Copy the verdict of another experiment into superseded/; move a damaged verdict there and log a warning."""
    path = folder / VERDICT
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text())
        other = str(before["experiment"])
    except (ValueError, TypeError, KeyError):
        log.warning("%s is damaged; it was moved to %s and is written again", path, set_aside(folder, VERDICT))
        return
    if other != name:
        write_json(folder / SUPERSEDED / f"verdict-{other}.json", before)


def set_aside(folder: Path, name: str) -> Path | None:
    """Move a file of `folder` into superseded/ under a free name; return the new path, None if there is no file."""
    file, number = folder / name, 1
    if not file.is_file():
        return None
    while (target := folder / SUPERSEDED / f"{file.stem}-{number}{file.suffix}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    return target
