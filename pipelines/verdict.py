"""The experiment that decides: arms trained alike, one chosen on validation and tested once, and all that was seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medlt import config as configs
from medlt.evaluation.arms import Arm, Arms
from medlt.report.html import write as write_report
from medlt.runs import Experiment
from pipelines import arm_training, arming, concluding, labelling, opening, sourcing
from pipelines.arm_training import Rows, Trained
from pipelines.stages import Collection, Progress, quiet


def main(config: configs.VerdictConfig, progress: Progress = quiet) -> Path:
    """Sources, arms, tables, verdict, report; returns the run folder, made or gone on with.

    Raises InputError before anything is trained on bad input.
    """
    arming.look(config)
    run, real = opening.collect_held(config)
    with run.stage("sources"):
        given = sourcing.sources(config, real, progress)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    train, val, test = (real.training_set(split, config.classifier.size) for split in ("train", "val", "test"))
    whole = arming.arms(config, real, train, given)
    with run.stage("arms") as folder:
        rows = Rows(train, val, test, folder, config.threads, config.device)
        trained = arm_training.train(rows, whole, _seeds(config), config.workers, progress)
    _tell_pace(run, rows, whole, trained)
    with run.stage("labels"):
        labelling.consistency(run, real, list(given.values()), progress)
    with run.stage("verdict"):
        concluding.conclude(run, real, whole, _asked(real, rows, trained, config))
    with run.stage("report"):
        write_report(run.folder)
    return run.folder


def _seeds(config: configs.VerdictConfig) -> list[int]:
    return [config.seed + seed for seed in range(config.evaluation.seeds)]


def _asked(real: Collection, rows: Rows, trained: Trained, config: configs.VerdictConfig) -> Arms:
    """What all arms say of the held-out rows."""
    patients = [str(patient) for patient in real.manifest.split("test").rows["patient_id"]]
    single = config.classifier.task == "single-label"
    return Arms(trained.test, rows.test.labels, patients, real.manifest.findings, trained.val, rows.val.labels, single)


def _tell_pace(run: Experiment, rows: Rows, whole: Sequence[Arm], trained: Trained) -> None:
    """Counts, and how fast and how busy the training was, into run.json."""
    total = len(whole) * run.config.evaluation.seeds
    counts = {"train": len(rows.train), "val": len(rows.val), "test": len(rows.test), "arms": len(whole)}
    run.record(counts=counts | {"trained": len(trained.paces), "cached": total - len(trained.paces)})
    if trained.paces:
        speed, busy = np.mean(trained.paces, axis=0)
        told = {"images_per_second": round(float(speed), 1), "busy": round(float(busy), 4)}
        run.record(health={"training": told | {"workers": run.config.workers}})
