"""Fill the tail of a collection with checked synthetic images, with labels, provenance and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medlt import config as configs
from medlt.checks.folds import CrossFitClassifiers
from medlt.data.manifest import Manifest
from medlt.files import digest, write_text
from medlt.privacy.card import datasheet, model_card
from medlt.recipes._calibrate import settle
from medlt.recipes._checks import check_config, check_rows, check_shortfall, classifier_identity
from medlt.recipes._cohort import Cohort, RealRows, open_cohort, read_rows
from medlt.recipes._estimate import generator_parts, note_training_time
from medlt.recipes._learn import learn
from medlt.recipes._localisation import write_localisation
from medlt.recipes._methods import Built, build_method
from medlt.recipes._pictures import show_grid, show_panels, show_rejected
from medlt.recipes._privacy import check_budget
from medlt.recipes._publish import make_images, publish
from medlt.recipes._quality import build_checks, introspect, measure
from medlt.recipes._setup import RunFolder, opened
from medlt.recipes._workers import workers_ready
from medlt.report.html import write_report
from medlt.report.scorecard import write_scorecard
from medlt.training.runtime import silent
from medlt.types import Progress

UNNAMED = {"data", "device", "threads", *configs.WORKING, "format"}
"""Keys of a config that the id of a run leaves out, like all paths. The rows stand for `data`; the others change no
PNG."""


@dataclass(frozen=True)
class Filled:
    """The result of filling the tail: real rows, verifiers, the plan rows that were used, and the published images."""

    cohort: Cohort
    verifiers: CrossFitClassifiers
    plan: pd.DataFrame
    made: Manifest


def main(config: configs.RunConfig, progress: Progress = silent) -> Path:
    """Train, make and check images, and write the report, or resume an interrupted run; return the run folder.

    Raises InputError on bad input, before any training.
    """
    rows = check(config)
    with opened(config, progress) as run, workers_ready(run):
        cohort = open_cohort(run, rows)
        note_training_time(run, generator_parts(run, cohort))
        fill(run, cohort)
        write_documents(run)
    return run.folder


def check(config: configs.RunConfig) -> RealRows | None:
    """Check config and rows before the run folder is made, and return the rows. No image is read."""
    check_config(config)
    check_budget(config)
    rows = read_rows(config)
    if rows is not None:
        check_rows(config, rows)
        check_shortfall(rows)
    return rows


def fill(run: RunFolder[configs.RunConfig], cohort: Cohort) -> Filled:
    """Make, check and publish the images of the whole plan, and write their measurements and figures."""
    learnt = learn(run, cohort)
    built = settle(run, learnt, build_method(run, learnt))
    method, checks = built.method, build_checks(run, cohort, learnt.verifiers)
    with run.stage("synthesis"):
        models = _named(run, cohort, built)
        run_id = _run_id(run, cohort, built)
        run.record(id=run_id)
        plan, images = make_images(run, cohort, built, checks, models, run_id)
        made = publish(run, cohort, plan, images, models)
    with run.stage("quality"):
        measure(run, cohort, learnt.verifiers, made)
        write_localisation(run, cohort, method, made)
        introspect(run, cohort, method, plan, made, images)
        show_grid(run, made)
        show_panels(run, method, plan, made)
        show_rejected(run, images, method, plan, made)
    return Filled(cohort, learnt.verifiers, plan, made)


def _named(run: RunFolder[configs.RunConfig], cohort: Cohort, built: Built) -> str:
    """Return a digest of what made the images. A data-independent run leaves out its rows, which it must not reveal."""
    return digest({**built.models, **({} if run.config.data_independent else {"manifest": cohort.manifest.digest()})})


def _run_id(run: RunFolder[configs.RunConfig], cohort: Cohort, built: Built) -> str:
    """Return the id of a run, 16 hex digits: equal for equal configs, models and real rows, wherever the run lies.

    A private run leaves out its rows, so that nobody can test whether a row is among them.
    """
    settings = _without_paths(run.config.model_dump(exclude=UNNAMED))
    rows = [] if run.config.privacy is not None else [cohort.manifest.digest()]
    chosen = [one for one in (run.config.classifier, run.config.guidance_classifier) if one and one.weights]
    return digest("run", settings, dict(built.models), rows, *map(classifier_identity, chosen))


def _without_paths(value: Any) -> Any:
    """Return nested settings without their paths, given or null."""
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items() if not isinstance(one, Path | None)}
    return [_without_paths(one) for one in value] if isinstance(value, list | tuple) else value


def write_documents(run: RunFolder[configs.RunConfig]) -> None:
    """Write the report, the model card, the data sheet and the scorecard."""
    with run.stage("report"):
        write_report(run.folder)
        write_text(run.path("MODEL_CARD.md"), model_card(run.folder))
        write_text(run.path("DATASHEET.md"), datasheet(run.folder))
        write_scorecard(run.folder)
