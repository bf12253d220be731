"""From plan rows to a published data set: make, check, keep the best of each slot, publish with provenance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import pandas as pd
import torch

from medlt import config as configs
from medlt.checks.asserted import Asserted
from medlt.checks.consistency import Crossfit, LabelConsistency, best_of, thresholds
from medlt.checks.sanity import copies, sanity
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.diffusion.overlap import ahead
from medlt.files import write_table
from medlt.runs import Run
from medlt.types import Batch, Check, Finding, Synthesizer
from medlt.writer import DatasetWriter, write_dicom, write_metadata
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


def checks(config: configs.RunConfig, real: Collection, judges: Crossfit) -> tuple[Check, ...]:
    """Sanity against the parents, then the label as seen by the judge that saw neither parent."""
    findings = list(real.manifest.findings)
    limits = thresholds(judges.held_out, real.train.rows[findings], config.checks.quantile)
    parents = partial(_parents, real, config.size)
    usual = sanity(parents, black_below=config.checks.black_below, duplicate_above=config.checks.duplicate_above)
    return (*usual, Asserted(), LabelConsistency(judges.judges, dict(limits), findings))


def _parents(real: Collection, size: int, uids: list[str]) -> torch.Tensor:
    return images(real.train, size, real.cache, uids)


def shards(plan: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The plan cut between slots, each piece with its name."""
    slot = plan.groupby(["finding", "slot"], sort=False).ngroup()
    for number, rows in plan.groupby(slot // SLOTS):
        yield f"{number:06d}", rows


def make(run: Run, method: Synthesizer, plan: pd.DataFrame, looks: tuple[Check, ...], progress: Progress) -> None:
    """Every shard that is not finished: images, findings, the kept ones on disk."""
    writer, total = DatasetWriter(run.folder), len(plan)
    done = 0
    made = ((name, rows, None if writer.has(name) else joined(list(method.run(rows)))) for name, rows in shards(plan))
    # an accelerator makes the next shard while this one is checked and written; a CPU is busy either way
    for name, rows, batch in made if run.config.device == "cpu" else ahead(made):
        if batch is not None:
            found = [finding for look in looks for finding in look(batch)]
            found += best_of(batch.rows, found)
            writer.write(name, batch, found, [f.uid for f in found if f.check == "best_of" and f.passed])
        progress("images", done := done + len(rows), total)


def joined(batches: list[Batch]) -> Batch:
    """One batch of many."""
    tables = [pd.concat([getattr(batch, name) for batch in batches]) for name in ("rows", "labels")]
    return Batch(tables[0], torch.cat([batch.images for batch in batches]), tables[1])


def publish(run: Run, real: Collection, plan: pd.DataFrame, method: str, models: str) -> Manifest:
    """Kept images that copy no other one go to images/, all rows to manifest.parquet. Returns the synthetic rows."""
    writer = DatasetWriter(run.folder)
    kept, said = writer.kept(), writer.findings()
    if len(kept):
        twins = copies(list(kept.index), writer.read, run.config.checks.duplicate_above)
        said = pd.concat([said, _table(twins)], ignore_index=True)
        kept = kept.drop([finding.uid for finding in twins if not finding.passed])
    write_table(run.path("findings.parquet"), said)
    writer.publish(kept.index)
    run.record(counts={"planned": len(plan), "kept": len(kept), "rejected": len(plan) - len(kept)})
    if kept.empty:
        real.manifest.write(run.path("manifest.parquet"))
        return real.manifest.where(pd.Series(False, real.manifest.rows.index))
    made = _manifest(run, real, kept, method, models)
    write_metadata(run.folder, made.rows, made.findings)
    if run.config.format == "dicom":
        write_dicom(run.folder, made.rows, made.findings)
    real.manifest.join(made).write(run.path("manifest.parquet"))
    return made


def _table(findings: list[Finding]) -> pd.DataFrame:
    return pd.DataFrame([vars(finding) for finding in findings])


def _manifest(run: Run, real: Collection, kept: pd.DataFrame, method: str, models: str) -> Manifest:
    """Synthetic rows: a patient of their own, the train split, the view they were planned with, and what made them."""
    views = kept["view"] if "view" in kept else real.train.rows["view"].reindex(kept["parent_a"]).to_numpy()
    rows = kept.assign(
        patient_id=[f"synthetic-{uid}" for uid in kept.index],
        split="train",
        view=views,
        synthetic=True,
        weight=run.config.evaluation.weight,
        method=method,
        models=models,
    )
    return Manifest(rows, real.manifest.findings, run.folder)
