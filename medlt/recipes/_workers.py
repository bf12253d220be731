"""Worker processes that make shards of a plan: each builds the run's method and checks once, from trained parts.

A worker reads the run folder and its artifacts, and writes nothing but shards, each whole or not there. The process
that started it registers, retries and publishes them. An image depends on its row alone, so the shards have the bytes
that one process makes. The shards of a worker that is lost are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medlt import config as configs
from medlt.engine import EngineChoice, ready, run_tasks
from medlt.recipes._calibrate import with_strengths
from medlt.recipes._cohort import filed_cohort
from medlt.recipes._learn import learn
from medlt.recipes._methods import build_method
from medlt.recipes._quality import build_checks
from medlt.recipes._setup import RunFolder, read_only
from medlt.recipes._shards import joined, write_checked
from medlt.training.runtime import silent
from medlt.types import InputError
from medlt.writer import DatasetWriter

TRIES = 3
"""How often in a row missing shards are begun without one of them appearing."""


@dataclass(frozen=True)
class MethodSpec:
    """What a worker needs to build the method of a run: its folder, the digest of its models, the run's id, and the
    measured strengths of its guides."""

    folder: Path
    models: str
    run_id: str
    strengths: tuple[tuple[float, float], ...] = ()


def in_workers(config: configs.RunConfig) -> bool:
    """Return whether images are made by worker processes, not by the process of the run."""
    return config.workers > 1 or config.engine != configs.EngineConfig()


def workers_ready(run: RunFolder[configs.RunConfig]) -> AbstractContextManager[None]:
    """Start the workers' engine while the run is prepared. Raises InputError, before any training, if it cannot start.

    Nothing is started if one process makes the images, or if the run is finished.
    """
    if not in_workers(run.config) or run.path("manifest.parquet").is_file():
        return nullcontext()
    return ready(_engine(run.config), __name__)


def build_maker(spec: MethodSpec) -> Callable[[pd.DataFrame], bool]:
    """Build the method as the run did, in a worker, and return what makes, checks and writes the shard of given rows.

    Nothing is trained, since the run trained every part before.
    """
    run = read_only(spec.folder, silent)
    with run.runtime.limited():
        cohort = filed_cohort(run)
        learnt = learn(run, cohort)
        method = with_strengths(build_method(run, learnt), spec.strengths).method
        checks = build_checks(run, cohort, learnt.verifiers)
    writer = DatasetWriter(run.folder, spec.models, spec.run_id)

    def make_shard(rows: pd.DataFrame) -> bool:
        with run.runtime.limited():
            write_checked(run, writer, rows, joined(list(method.run(rows))), checks)
        return True

    return make_shard


def lost_shard(rows: pd.DataFrame, how: str) -> bool:
    """Return False, for a shard whose worker died."""
    return False


def make_in_workers(
    run: RunFolder[configs.RunConfig],
    writer: DatasetWriter,
    pieces: Sequence[pd.DataFrame],
    strengths: tuple[tuple[float, float], ...],
) -> None:
    """Make the shards of `pieces` that do not exist yet on the config's engine; strengths: those of `Built`.

    Raises InputError if shards stay missing, or the engine cannot start.
    """
    spec = MethodSpec(run.folder.absolute(), writer.models, writer.run_id, strengths)
    total, tries, before = sum(map(len, pieces)), 0, len(pieces) + 1
    while missing := [piece for piece in pieces if not writer.has(piece)]:
        tries, before = 0 if len(missing) < before else tries + 1, len(missing)
        if tries == TRIES:
            raise InputError(
                f"{run.folder}: {len(missing)} shard(s) are missing after {TRIES} tries: their workers ended, as "
                "happens when memory runs out (use fewer), or this folder is not shared with them; then run again "
                "(finished shards are kept)"
            )
        done = total - sum(map(len, missing))
        run.runtime.progress("images", done, total)
        engine = _engine(run.config)
        workers = min(engine.workers, len(missing))
        engine = replace(engine, workers=workers, gpus=min(engine.gpus, workers))
        for rows, made in run_tasks(engine, build_maker, (spec,), missing, lost_shard, ahead=1):
            if made:
                run.runtime.progress("images", done := done + len(rows), total)
    run.runtime.progress("images", total, total)


def _engine(config: configs.RunConfig) -> EngineChoice:
    """Return the engine of a config. Each GPU has a worker at least."""
    engine = config.engine
    return EngineChoice(engine.kind, max(config.workers, engine.gpus), engine.gpus, engine.address)
