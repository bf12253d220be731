"""Choose and measure the strength of each guide of a config, without making the images of the run."""

from __future__ import annotations

from pathlib import Path

from medlt import config as configs
from medlt.recipes._calibrate import settle
from medlt.recipes._checks import guidance_of
from medlt.recipes._cohort import open_cohort
from medlt.recipes._estimate import generator_parts, note_training_time
from medlt.recipes._learn import learn
from medlt.recipes._methods import build_method
from medlt.recipes._setup import opened
from medlt.recipes.augment import check
from medlt.report.html import write_report
from medlt.training.runtime import silent
from medlt.types import InputError, Progress


def main(config: configs.RunConfig, progress: Progress = silent) -> Path:
    """Train or load what the method needs, measure its guides, and return the run folder. Run it again to resume.

    It writes calibration.parquet, the section `guidance` of run.json, and the report. `medlt augment` with the same
    config then goes on from there. Raises InputError for a method without guidance.
    """
    if not any(one.weight for one in guidance_of(config.method)):
        raise InputError(f"method {config.method.kind} has no guidance to calibrate; add method.guidance")
    rows = check(config)
    with opened(config, progress) as run:
        cohort = open_cohort(run, rows)
        note_training_time(run, generator_parts(run, cohort))
        learnt = learn(run, cohort)
        settle(run, learnt, build_method(run, learnt))
        with run.stage("report"):
            write_report(run.folder)
    return run.folder
