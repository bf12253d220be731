"""The comparison that gives the verdict, the same for every command: build, train and test the arms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.evaluation.arms import Arm, ExperimentRows
from medlt.evaluation.conclude import VERDICT, Conclusion, conclude, experiment
from medlt.evaluation.design import ArmSpec, build_arms
from medlt.evaluation.engine import TrainedArms, train_arms, trainable_arms
from medlt.evaluation.length import TrainingLength, of_length, pilot
from medlt.evaluation.sources import SourceImages
from medlt.evaluation.subgroups import ATTRIBUTES
from medlt.evaluation.tables import Setup
from medlt.evaluation.tuning import tuned
from medlt.files import digest, write_json
from medlt.metrics import confounding
from medlt.recipes._cohort import Cohort, RealRows
from medlt.recipes._retention import write_retention
from medlt.recipes._setup import RunFolder
from medlt.recipes._through_codec import coded_images
from medlt.types import InputError

EVALUATIONS = "test_set_evaluations.json"
BALANCED = "balanced_test"
"""Column of the test rows in the balanced test list of NIH-CXR-LT or MIMIC-CXR-LT."""


def tested_rows(rows: RealRows, chosen: configs.EvaluationConfig) -> Manifest:
    """Return the test rows that give the verdict. Raises InputError if balanced ones are wanted and there is none."""
    if chosen.test_set == "all":
        return rows.test
    balanced = _balanced(rows.test)
    if balanced is None or not balanced.any():
        raise InputError(
            "evaluation.test_set: balanced, but no test row has balanced_test; make the manifest with the balanced "
            "test list of NIH-CXR-LT or MIMIC-CXR-LT (--release 2022), or choose all"
        )
    return rows.test.where(pd.Series(balanced, rows.test.rows.index))


def _balanced(part: Manifest) -> NDArray[np.bool_] | None:
    """Return which rows are in the balanced test list; None without such a column."""
    return part.rows[BALANCED].eq(True).to_numpy(bool) if BALANCED in part.rows else None


def experiment_rows(cohort: Cohort, size: int, chosen: configs.EvaluationConfig) -> ExperimentRows:
    """Return what all arms share: the splits as 8-bit images with labels, and attributes of the test rows."""
    tested = tested_rows(cohort, chosen)
    train, val, test = (cohort.training_set(part, size) for part in (cohort.train, cohort.val, tested))
    rows = tested.rows
    patients = [str(patient) for patient in rows["patient_id"]]
    attributes = rows[[name for name in dict.fromkeys((*ATTRIBUTES, *confounding.COLUMNS)) if name in rows]]
    own = (patients, attributes)
    return ExperimentRows(train, val, test, cohort.findings, cohort.members(), *own, balanced=_balanced(tested))


def arm_settings(config: configs.RunConfig | configs.EvaluateConfig) -> dict[str, Any]:
    """Return the settings that all arms share, before their number of steps is known."""
    assert config.evaluation is not None  # callers compare only with this section
    return config.classifier.model_dump(exclude={"size"}) | {"synthetic_fraction": config.evaluation.fractions[0]}


def compare(
    run: RunFolder[Any], cohort: Cohort, specs: Mapping[str, ArmSpec], sources: Mapping[str, SourceImages]
) -> Conclusion:
    """Build, train and test the arms, and write tables and verdict into the run folder."""
    chosen = run.config.evaluation
    size = run.config.classifier.size
    rows = replace(experiment_rows(cohort, size, chosen), simulated=run.config.data.kind == "phantom")
    length = _length(run, rows)
    settings = of_length(arm_settings(run.config), length)
    arms = build_arms(specs, rows, sources, settings=settings, weight=chosen.weights[0])
    seeds = [run.config.seed + number for number in range(chosen.seeds)]
    training: dict[str, Any] = {"runtime": run.runtime.at("fp32"), "store": run.store, "workers": chosen.workers}
    with run.stage("choice on validation"):
        best = tuned(rows, arms, seeds, chosen.fractions, chosen.weights, **training)
        arms = list(best.arms)
    with run.stage("codec of sources"):
        coded = coded_images(cohort, rows, sources, size, run.config.seed)
    with run.stage("arms"):
        trained = train_arms(rows, arms, seeds, coded=coded, **training)
    _record(run, rows, arms, trained)
    with run.stage("lesion retention"):
        write_retention(run, cohort, sources, size)
    options: dict[str, Any] = {
        "n_bootstrap": chosen.n_bootstrap, "seed": run.config.seed, "primary_arm": chosen.primary_arm,
        "metric": chosen.metric,
    }  # fmt: skip
    with run.stage("verdict"):
        evaluated = _evaluated(run, experiment(rows, arms, seeds, **options) if trainable_arms(arms) else None)
        conclusion = conclude(
            rows, arms, trained, run.folder, experiments=evaluated, setup=Setup(length, coded, best.record()), **options
        )
    return conclusion


def _length(run: RunFolder[Any], rows: ExperimentRows) -> TrainingLength:
    """Return the steps of every arm: those of the config, or the plateau of a pilot."""
    chosen = run.config.evaluation
    if isinstance(chosen.steps, int):
        return TrainingLength(chosen.steps, chosen.steps, "config")
    with run.stage("pilot"):
        return pilot(rows, arm_settings(run.config), chosen.max_steps, runtime=run.runtime.at("fp32"), store=run.store)


def _evaluated(run: RunFolder[Any], name: str | None) -> Sequence[str]:
    """Add an experiment to those that were evaluated on the test rows in this folder, and return the names of all.

    The list is written before the verdict, so that a call that is stopped between them is counted.
    """
    file, names = run.path(EVALUATIONS), list[str]()
    if file.is_file() or run.path(VERDICT).is_file():
        try:
            record = json.loads(file.read_text())
            names, whole = list(record["experiments"]), record["checksum"] == digest(record["experiments"])
        except (OSError, ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise InputError(f"{file}: missing or damaged; restore it: it counts how often the test set was used")
    names = list(dict.fromkeys([*names, *([name] if name else [])]))
    write_json(file, {"experiments": names, "checksum": digest(names)})
    return names


def _record(run: RunFolder[Any], rows: ExperimentRows, arms: Sequence[Arm], trained: TrainedArms) -> None:
    """Record counts, and how many arms this call trained and how fast, in run.json."""
    run.record(counts={"train": len(rows.train), "val": len(rows.val), "test": len(rows.test), "arms": len(arms)})
    work: dict[str, float] = {"trained": trained.trained, "cached": trained.cached}
    if (pace := trained.pace) is not None:
        work |= {"images_per_second": round(pace.images_per_second, 1), "busy": round(pace.busy, 4)}
        work |= {"workers": run.config.evaluation.workers}
    run.record(training_of_arms=work)
