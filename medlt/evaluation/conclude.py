"""Turn the predictions of all arms into tables and a verdict, and write them into a folder.

arms.parquet and verdict.json are always written; the other tables (`medlt.evaluation.tables`) only if arms were
compared. The verdict of another experiment and damaged files are moved to superseded/.
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
from medlt.evaluation.benchmark import benchmark_record
from medlt.evaluation.confounding import confounded_tail
from medlt.evaluation.engine import TrainedArms, trainable_arms
from medlt.evaluation.fingerprint import fingerprint_record, limited
from medlt.evaluation.sight import Sight, margin
from medlt.evaluation.tables import NAMES, ConclusionOptions, Setup, Tables, all_tables, arm_table, control_of
from medlt.evaluation.verdict import (
    NOT_KEPT,
    NOTHING,
    comparison_entries,
    comparison_entry,
    decide,
    select_arm,
    selection_rule,
)
from medlt.files import SUPERSEDED, digest, set_aside, write_json, write_table
from medlt.types import InputError

VERDICT = "verdict.json"
log = logging.getLogger(__name__)


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
    setup: Setup | None = None,
    metric: str = "AP",
) -> Conclusion:
    """Select an arm on validation, compare it with its control on test, and write tables and verdict into `folder`.

    n_bootstrap: resamples of the patients, seeded by `seed`; primary_arm: the arm that the verdict is about, None for
    the best on validation; experiments: those of the previous `Conclusion` on these test rows; setup: what was decided
    before the training; metric: the one whose mean over the tail gives the verdict. Raises InputError if `primary_arm`
    has no synthetic images or an arm was not trained.
    """
    synthetic = [arm.name for arm in arms if arm.role == "synthetic"]
    if primary_arm is not None and primary_arm not in synthetic:
        choices = ", ".join(synthetic) or "none"
        raise InputError(f"arm {primary_arm!r} has no synthetic images; set primary_arm to one of: {choices}")
    options = ConclusionOptions(n_bootstrap, seed, primary_arm, setup or Setup())
    name = experiment(
        rows, arms, trained.seeds, n_bootstrap=n_bootstrap, seed=seed, primary_arm=primary_arm, metric=metric
    )
    compared = trainable_arms(arms)
    evaluated = tuple(dict.fromkeys([*experiments, *([name] if compared else [])]))
    tested = _tested(rows, compared, trained, metric)
    primary = _primary(arms, compared, tested, rows.tail, primary_arm)
    tables, verdict = None, _undecided(arms, primary)
    if tested is not None:
        tables, verdict = _compared(rows, compared, tested, trained, primary, options, verdict)
    verdict |= {"experiment": name, "metric": metric, "test_set_evaluations": len(evaluated)}
    conclusion = Conclusion(verdict, arm_table(arms, tested, rows.tail, primary), tables, evaluated)
    _write(conclusion, Path(folder))
    return conclusion


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
    metric: str = "AP",
) -> str:
    """Return 16 hex digits that identify an experiment: its rows, arms, seeds and options of `conclude`."""
    trained = [[arm.name, arm.role, arm.control, arm.digest()] for arm in arms]
    return digest(rows.digest(), trained, list(seeds), n_bootstrap, seed, primary_arm, metric)


def _tested(rows: ExperimentRows, arms: Sequence[Arm], trained: TrainedArms, metric: str) -> ArmScores | None:
    """Return the predictions of the arms with the true labels; None without arms."""
    if not arms:
        return None
    if lost := [arm.name for arm in arms if arm.name not in trained.test]:
        raise InputError(f"arm {lost[0]!r} was not trained; train all arms before concluding")
    test, val = ({arm.name: scores[arm.name] for arm in arms} for scores in (trained.test, trained.val))
    patients = [str(patient) for patient in rows.patients]
    single = any(arm.settings.get("task") == "single-label" for arm in arms)
    truth = (rows.test.labels, patients, rows.findings, val, rows.val.labels)
    return ArmScores(test, *truth, single, rows.simulated, metric)


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
    trained: TrainedArms,
    primary: str | None,
    options: ConclusionOptions,
    undecided: dict[str, Any],
) -> tuple[Tables, dict[str, Any]]:
    """Return the tables and the verdict; `undecided` is the verdict without a primary arm."""
    without = [arm.name for arm in arms if arm.role in ("real", "reweighted")]
    best_without = select_arm(tested, without, rows.tail) or REAL
    tables = all_tables(rows, arms, tested, trained, primary, best_without, options)
    sight = _sight(rows, tested, trained, options)
    tables = replace(tables, comparisons=sight.read(limited(tables.comparisons, tables.fingerprints)))
    verdict = undecided
    if primary is not None:
        verdict = decide(tables.comparisons, tested, primary, control_of(arms, primary), sight.problems)
        verdict |= {"against_real": comparison_entry(tables.comparisons, tested, primary, best_without)}
        verdict |= {"chosen_by": _chosen_by(tested, arms, rows.tail, options.primary_arm)}
    verdict |= sight.record() | {"fingerprints": fingerprint_record(tables.fingerprints)}
    verdict |= {"chosen_on_validation": dict(options.setup.choices)}
    verdict |= {"confounded": confounded_tail(tested, rows.attributes, rows.tail)}
    verdict |= {"benchmark": benchmark_record(rows, tables.benchmark)}
    return tables, verdict | {"arms": comparison_entries(tables.comparisons, arms, tested, rows.tail)}


def _sight(rows: ExperimentRows, tested: ArmScores, trained: TrainedArms, options: ConclusionOptions) -> Sight:
    """Return what the verdict depends on besides its interval."""
    length = options.setup.length
    if length is not None:
        length = length.with_curves(trained.curves.get(REAL, ()))
    return Sight(margin(tested, rows.tail, n_bootstrap=options.n_bootstrap, seed=options.seed), length)


def _write(conclusion: Conclusion, folder: Path) -> None:
    """Write all tables, then the verdict; move those of an earlier experiment away first."""
    _supersede(folder, str(conclusion.record["experiment"]))
    write_table(folder / "arms.parquet", conclusion.arms)
    for name in NAMES:
        if conclusion.tables is not None:
            write_table(folder / f"{name}.parquet", getattr(conclusion.tables, name))
        else:
            set_aside(folder / f"{name}.parquet", folder)
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
        log.warning("%s is damaged; it was moved to %s and is written again", path, set_aside(path, folder))
        return
    if other != name:
        write_json(folder / SUPERSEDED / f"verdict-{other}.json", before)
