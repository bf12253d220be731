"""Fill the tail, and measure whether that helps."""

from __future__ import annotations

from pathlib import Path

from medlt import config as configs
from medlt.evaluation.design import ArmSpec
from medlt.recipes._cohort import open_cohort
from medlt.recipes._compare import compare, tested_rows
from medlt.recipes._estimate import arms_part, generator_parts, note_training_time
from medlt.recipes._setup import opened
from medlt.recipes._sources import own_images
from medlt.recipes._workers import workers_ready
from medlt.recipes.augment import check, fill, write_documents
from medlt.training.runtime import silent
from medlt.types import Progress

REAL, ADDED = 1, 2
"""The arms of a run: real images alone; with the synthetic ones, and with as many duplicates of real ones."""


def main(config: configs.RunConfig, progress: Progress = silent) -> Path:
    """Run `medlt.recipes.augment`, then train and compare the arms; return the run folder."""
    rows, name = check(config), config.method.kind
    if rows is not None and config.evaluation is not None:
        tested_rows(rows, config.evaluation)
    with opened(config, progress) as run, workers_ready(run):
        cohort = open_cohort(run, rows)
        note_training_time(run, [*generator_parts(run, cohort), *arms_part(run, cohort, REAL, ADDED)])
        filled = fill(run, cohort)
        if config.evaluation is not None:
            compare(run, cohort, {name: ArmSpec(source=name)}, {name: own_images(name, run, filled)})
        write_documents(run)
    return run.folder
