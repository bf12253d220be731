"""From plan rows to kept images: make, check, keep the best of each slot, try empty slots again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import pandas as pd
import torch

from medlt.checks.asserted import Asserted
from medlt.checks.consistency import Crossfit, LabelConsistency, best_of
from medlt.diffusion.overlap import ahead
from medlt.files import write_json, write_table
from medlt.runs import Run
from medlt.types import Batch, Check, InputError, Synthesizer
from medlt.writer import DatasetWriter
from pipelines.stages import Collection, Progress

M = TypeVar("M", bound=Synthesizer)
SLOTS = 32  # whole slots in a shard: what a kill can lose


@dataclass(frozen=True)
class Prepared(Generic[M]):
    """All that is learnt, and the method made of it; `method.run(rows)` makes any row of the plan again."""

    run: Run
    real: Collection
    judges: Crossfit
    method: M


def shards(plan: pd.DataFrame, prefix: str = "") -> Iterator[tuple[str, pd.DataFrame]]:
    """The plan cut between slots, each piece with its name."""
    slot = plan.groupby(["finding", "slot"], sort=False).ngroup()
    for number, rows in plan.groupby(slot // SLOTS):
        yield f"{prefix}{number:06d}", rows


def make(ready: Prepared[M], looks: tuple[Check, ...], progress: Progress) -> pd.DataFrame:
    """Images of the whole plan, checked, the best of each slot on disk; plan.parquet, what was tried, is returned.

    Slots of which no candidate passed are tried again with candidates of their own, `need.refills` times. Every round
    is a function of the one before, so a killed run goes on to the same end.
    """
    run, need, writer = ready.run, ready.run.config.need, DatasetWriter(ready.run.folder)
    _own(run)
    whole = ready.method.plan(ready.real.shortfall(), run.config.seed)
    tried = whole.iloc[:0]
    for turn in range(1 + need.refills):
        filled = _filled(writer.kept(), turn * need.candidates)
        slots = whole[["finding", "slot"]].itertuples(index=False, name=None)
        empty = pd.Series([slot not in filled for slot in slots], index=whole.index, dtype=bool)
        rows = whole[empty & (whole["candidate"] // need.candidates == turn)]
        tried = pd.concat([tried, rows])
        write_table(run.path("plan.parquet"), tried)
        _round(run, writer, ready.method, shards(rows, f"again{turn}-" if turn else ""), looks, progress, len(rows))
    return tried


def _own(run: Run) -> None:
    """Raises InputError where images of another denoiser lie in the run's folder, which no ledger would speak for."""
    place, named = run.path("stages", "shards", "denoiser.json"), run.told()["digests"]["denoiser"]
    if not place.is_file():
        write_json(place, {"denoiser": named})
    elif json.loads(place.read_text())["denoiser"] != named:
        raise InputError(f"{place.parent}: images there are of another denoiser; move stages/shards and images away")


def _filled(kept: pd.DataFrame, before: int) -> set[tuple[str, int]]:
    """(finding, slot) of images kept of candidates numbered below `before`: of the rounds before this one."""
    if kept.empty:
        return set()
    return set(kept.loc[kept["candidate"] < before, ["finding", "slot"]].itertuples(index=False, name=None))


def _round(
    run: Run, writer: DatasetWriter, method: Synthesizer, cut: Iterator[tuple[str, pd.DataFrame]],
    looks: tuple[Check, ...], progress: Progress, total: int,
) -> None:  # fmt: skip
    """Every shard that is not finished: images, findings, the kept ones on disk."""
    done = 0
    made = ((name, rows, None if writer.has(name) else joined(list(method.run(rows)))) for name, rows in cut)
    # an accelerator makes the next shard while this one is checked and written; a CPU is busy either way
    for name, rows, batch in made if run.config.device == "cpu" else ahead(made):
        if batch is not None:
            found = [finding for look in looks for finding in look(batch)]
            found += best_of(batch.rows, found, Asserted.name if run.config.blind else LabelConsistency.name)
            writer.write(name, batch, found, [f.uid for f in found if f.check == "best_of" and f.passed])
        progress("images", done := done + len(rows), total)


def joined(batches: list[Batch]) -> Batch:
    """One batch of many."""
    tables = [pd.concat([getattr(batch, name) for batch in batches]) for name in ("rows", "labels")]
    return Batch(tables[0], torch.cat([batch.images for batch in batches]), tables[1])
