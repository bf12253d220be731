"""The one story of every method: a long-tailed collection in, a filled tail, checked and told of, and its verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.files import digest, write_text
from medlt.privacy.card import datasheet, model_card
from medlt.report.html import write as write_report
from medlt.runs import Run
from medlt.types import Synthesizer
from pipelines import (
    checking,
    fusing,
    introspecting,
    learnt,
    making,
    measuring,
    proving,
    publishing,
    sampling,
    screening,
    showing,
)
from pipelines.making import Prepared
from pipelines.stages import Progress, quiet

WITHOUT_VERDICT = ("finetune",)
"""Recipes that show what a model makes and compare nothing."""


def prepare(config: configs.RunConfig, progress: Progress = quiet) -> Prepared[Any]:
    """Open the data and learn what synthesis needs, or find it learnt. Raises InputError on bad input."""
    ready = learnt.learn(config, progress)
    build: Callable[[learnt.Learnt], Synthesizer] = fusing.build if config.method.kind == "fusion" else sampling.build
    return Prepared(ready.run, ready.real, ready.judges, build(ready))


def augment(config: configs.RunConfig, progress: Progress = quiet) -> Path:
    """Images, checks, manifest and report, without the comparison; returns the run folder, made or gone on with.

    Raises InputError before anything is written on bad input.
    """
    ready = prepare(config, progress)
    _made(ready, progress)
    _told(ready.run)
    return ready.run.folder


def main(config: configs.RunConfig, progress: Progress = quiet) -> Path:
    """As `augment`, and then the arms that say whether it helps."""
    ready = prepare(config, progress)
    made = _made(ready, progress)
    if config.recipe not in WITHOUT_VERDICT:
        with ready.run.stage("evaluation"):
            proving.evaluate(ready.run, ready.real, made, config.method.kind, progress)
    _told(ready.run)
    return ready.run.folder


def _models(run: Run) -> str:
    """Names what made the images. In a blind run not the rows: who knew all of them but one could tell that one."""
    digests = run.told()["digests"]
    return digest({name: value for name, value in digests.items() if name != "manifest" or not run.config.blind})


def _told(run: Run) -> None:
    """The page, and what goes with the model and with the images when they are handed on."""
    with run.stage("report"):
        write_report(run.folder)
        write_text(run.path("MODEL_CARD.md"), model_card(run.folder))
        write_text(run.path("DATASHEET.md"), datasheet(run.folder))


def _made(ready: Prepared[Any], progress: Progress) -> Manifest:
    """Everything but the comparison and the page."""
    run, real, method = ready.run, ready.real, ready.method
    with run.stage("synthesis"):
        looks = (*checking.checks(run.config, real, ready.judges), *screening.near_copies(run, real, progress))
        plan = making.make(ready, looks, progress)
        made = publishing.publish(run, real, plan, run.config.method.kind, _models(run))
    with run.stage("looking"):
        measuring.quality(ready, made)
        introspecting.introspect(ready, made, progress)
        showing.grid(run)
        if run.config.method.kind == "fusion":
            showing.panels(run, method.explain)
    return made
