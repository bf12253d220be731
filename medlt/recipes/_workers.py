"""Worker processes that make shards of a plan: each builds the run's method and checks once, from trained parts.

A worker reads the run folder and its artifacts, and writes nothing but shards, each whole or not there. The process
that started it registers, retries and publishes them. An image depends on its row alone, so the shards have the bytes
that one process makes. A run that is killed, or loses a worker, makes the missing shards again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from medlt import config as configs
from medlt.evaluation.workers import in_processes
from medlt.recipes._setup import RunFolder, read_only
from medlt.training.runtime import silent
from medlt.types import Batch, Check, InputError, Synthesizer
from medlt.writer import DatasetWriter


@dataclass(frozen=True)
class MethodSpec:
    """What a worker needs to build the method of a run: its folder, the digest of its models, the run's id, and the
    measured strengths of its guides."""

    folder: Path
    models: str
    run_id: str
    strengths: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Maker:
    """The method and checks of a run, and the writer of its shards, in one worker."""

    run: RunFolder[configs.RunConfig]
    method: Synthesizer
    checks: Sequence[Check]
    writer: DatasetWriter

    def made(self, rows: pd.DataFrame) -> Batch:
        """Return the images of one shard's rows."""
        from medlt.recipes._publish import joined

        return joined(list(self.method.run(rows)))


@lru_cache(maxsize=1)
def _maker(spec: MethodSpec) -> _Maker:
    """Build the method as the run did. Nothing is trained, since the run trained every part before."""
    from medlt.recipes._calibrate import with_strengths
    from medlt.recipes._cohort import filed_cohort
    from medlt.recipes._methods import build_method
    from medlt.recipes._quality import build_checks
    from medlt.recipes.augment import learn

    run = read_only(spec.folder, silent)
    cohort = filed_cohort(run)
    learnt = learn(run, cohort)
    method = with_strengths(build_method(run, learnt), spec.strengths).method
    writer = DatasetWriter(run.folder, spec.models, spec.run_id)
    return _Maker(run, method, build_checks(run, cohort, learnt.verifiers), writer)


def make_shard(spec: MethodSpec, rows: pd.DataFrame) -> int:
    """Make, check and write the shard of these rows in a worker; return their number."""
    from medlt.recipes._publish import write_checked

    run = read_only(spec.folder, silent)
    with run.runtime.limited():  # threads first: parts are read under them, too
        maker = _maker(spec)
        write_checked(run, maker.writer, rows, maker.made(rows), maker.checks)
    return len(rows)


def make_in_workers(
    run: RunFolder[configs.RunConfig],
    writer: DatasetWriter,
    pieces: Sequence[pd.DataFrame],
    strengths: tuple[tuple[float, float], ...],
) -> None:
    """Make the shards of `pieces` that do not exist yet in `workers` processes; strengths: those of `Built`.

    Raises InputError if a worker ends unexpectedly.
    """
    missing = {i: (piece,) for i, piece in enumerate(pieces) if not writer.has(piece)}
    total = sum(map(len, pieces))
    done = total - sum(len(piece) for (piece,) in missing.values())
    run.runtime.progress("images", done, total)
    if not missing:
        return
    spec = MethodSpec(run.folder.absolute(), writer.models, writer.run_id, strengths)
    for _, count in in_processes(make_shard, missing, shared=spec, workers=min(run.config.workers, len(missing))):
        run.runtime.progress("images", done := done + count, total)
    if lost := [i for i in missing if not writer.has(pieces[i])]:
        raise InputError(f"{run.folder}: {len(lost)} shard(s) were damaged; run the same command again")
