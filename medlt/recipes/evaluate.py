"""The experiment that gives the verdict: train the arms alike, choose one on validation images, and test it once."""

from __future__ import annotations

from pathlib import Path

from medlt import config as configs
from medlt.evaluation.arms import REAL
from medlt.evaluation.design import ArmSpec, check_arms
from medlt.evaluation.expected import expected
from medlt.evaluation.labelling import check_labels
from medlt.recipes._checks import check_classifiers
from medlt.recipes._cohort import RealRows, open_cohort, read_rows
from medlt.recipes._compare import arm_settings, compare, tested_rows
from medlt.recipes._estimate import arms_part, note_training_time
from medlt.recipes._pictures import show_sources
from medlt.recipes._setup import opened
from medlt.recipes._sources import open_sources, source_config
from medlt.report.html import write_report
from medlt.training.runtime import silent
from medlt.types import InputError, Progress


def main(config: configs.EvaluateConfig, progress: Progress = silent) -> Path:
    """Run or resume the experiment: sources, arms, tables, verdict and report. Return the run folder.

    Raises InputError on bad input, before any training.
    """
    specs = {name: ArmSpec(**arm.model_dump()) for name, arm in config.arms.items()}
    rows = check(config, specs)
    with opened(config, progress) as run:
        cohort = open_cohort(run, rows)
        _require_splits(cohort)
        _require_tail(cohort)
        with run.stage("sources"):
            sources = open_sources(config, cohort, run.runtime.progress)
        added = [1 if spec.real_duplicates else 2 for spec in specs.values() if spec.source is not None]
        note_training_time(run, arms_part(run, cohort, len({*specs, REAL}) - len(added), sum(added)))
        conclusion = compare(run, cohort, specs, sources)
        if config.expect:
            run.record(expected=expected(conclusion.record.get("arms", ()), config.expect))
        with run.stage("labels"):
            chosen = config.evaluation_classifier or config.classifier
            train, val = (cohort.training_set(part, chosen.size) for part in (cohort.train, cohort.val))
            made = [one for name, one in sources.items() if config.sources[name].of_run]
            check_labels(
                made, train, val, run.folder, settings=chosen.model_dump(exclude={"size"}),
                runtime=run.runtime.at("fp32"), store=run.store,
            )  # fmt: skip
        with run.stage("report"):
            show_sources(run, sources)
            write_report(run.folder)
    return run.folder


def check(config: configs.EvaluateConfig, specs: dict[str, ArmSpec]) -> RealRows | None:
    """Check arms, sources and rows before the run folder is made, and return the rows. No image is read."""
    check_classifiers(config)
    check_arms(specs, arm_settings(config))
    for name, given in config.sources.items():
        if given.of_run:
            source_config(name, given)
    rows = read_rows(config)
    if rows is not None:
        _require_splits(rows)
        _require_tail(rows)
        tested_rows(rows, config.evaluation)
    return rows


def _require_splits(rows: RealRows) -> None:
    """Raise InputError if a split has no image."""
    for split in ("train", "val", "test"):
        if rows.manifest.split(split).rows.empty:
            raise InputError(f"no image has split {split}; arms are trained on train, chosen on val and tested on test")


def _require_tail(cohort: RealRows) -> None:
    """Raise InputError if no finding is tail."""
    if not cohort.tail:
        raise InputError(
            f"no finding is tail ({cohort.groups.rule}), so there is nothing to compare; raise targets.tail_below"
        )
