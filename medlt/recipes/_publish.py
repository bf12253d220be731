"""From plan rows to a published data set: made, checked, the best of each slot kept, empty slots tried again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from medlt import config as configs
from medlt.checks.consistency import LabelConsistency, best_of
from medlt.checks.sanity import copies
from medlt.checks.target_label import TargetLabelCheck
from medlt.data.manifest import Manifest
from medlt.diffusion.prefetch import prefetch
from medlt.files import digest, write_table
from medlt.recipes._cohort import Cohort
from medlt.recipes._setup import Run
from medlt.types import Batch, Check, CheckResult, Synthesizer
from medlt.writer import DatasetWriter, write_dicom, write_metadata

SLOTS = 32  # whole slots in a shard: what a kill can lose


@dataclass(frozen=True)
class Published:
    """The synthetic rows that were published, and the results of all checks of all images that were tried."""

    made: Manifest
    results: pd.DataFrame


def make_images(
    run: Run[configs.RunConfig], cohort: Cohort, method: Synthesizer, checks: Sequence[Check], models: str
) -> tuple[pd.DataFrame, DatasetWriter]:
    """Make and check the images of the whole plan; returns what was tried, which is plan.parquet, and its images.

    Slots of which no candidate passed are tried again with candidates of their own, `targets.max_retries` times. Every round
    is a function of the one before, so a killed run continues to the same end. `models` names what makes the images.
    """
    targets = run.config.targets
    writer = DatasetWriter(run.folder, models=_named(run, cohort, models))
    whole = method.plan(cohort.shortfall(), run.config.seed)
    tried = whole.iloc[:0]
    for turn in range(1 + targets.max_retries):
        filled = _filled(writer.kept(), turn * targets.num_candidates)
        slots = whole[["finding", "slot"]].itertuples(index=False, name=None)
        empty = pd.Series([slot not in filled for slot in slots], index=whole.index, dtype=bool)
        rows = whole[empty & (whole["candidate"] // targets.num_candidates == turn)]
        tried = pd.concat([tried, rows])
        write_table(run.path("plan.parquet"), tried)
        _make_round(run, writer, method, rows, checks)
    return tried, writer


def _named(run: Run[configs.RunConfig], cohort: Cohort, models: str) -> str:
    """Name all that decides which images of given plan rows are kept: models, real rows, verifiers' and checks'
    settings. In a data-independent run no real row has a part in it."""
    config = run.config
    chosen = [config.method.model_dump(mode="json"), config.checks.model_dump(mode="json"), config.size, config.seed,
              config.precision, config.latents]  # fmt: skip
    real = [] if config.data_independent else [cohort.manifest.digest(), config.classifier.model_dump(mode="json")]
    return digest("images", 1, models, chosen, real)


def shards(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield plan rows in pieces that are cut between slots."""
    slot = rows.groupby(["finding", "slot"], sort=False).ngroup()
    for _, piece in rows.groupby(slot // SLOTS):
        yield piece


def _filled(kept: pd.DataFrame, before: int) -> set[tuple[str, int]]:
    """(finding, slot) of images kept of candidates numbered below `before`: of the rounds before this one."""
    if kept.empty:
        return set()
    return set(kept.loc[kept["candidate"] < before, ["finding", "slot"]].itertuples(index=False, name=None))


def _make_round(
    run: Run[configs.RunConfig], writer: DatasetWriter, method: Synthesizer, rows: pd.DataFrame,
    checks: Sequence[Check],
) -> None:  # fmt: skip
    """Every shard that is not there yet: images, check results, the kept ones on disk."""
    made = ((piece, None if writer.has(piece) else joined(list(method.run(piece)))) for piece in shards(rows))
    by = TargetLabelCheck.name if run.config.data_independent else LabelConsistency.name
    done = 0
    # an accelerator makes the next shard while this one is checked and written; a CPU is busy either way
    for piece, batch in made if run.runtime.device == "cpu" else prefetch(made):
        if batch is not None:
            results = [result for check in checks for result in check(batch)]
            write_best(writer, piece, batch, [*results, *best_of(batch.rows, results, by)])
        run.runtime.progress("images", done := done + len(piece), len(rows))


def write_best(writer: DatasetWriter, rows: pd.DataFrame, batch: Batch, results: Sequence[CheckResult]) -> None:
    """Write a shard with the best of each of its slots."""
    kept = [result.uid for result in results if result.check == "best_of" and result.passed]
    writer.write(rows, batch, results, kept)


def joined(batches: list[Batch]) -> Batch:
    """Return one batch of many."""
    tables = [pd.concat([getattr(batch, name) for batch in batches]) for name in ("rows", "labels")]
    return Batch(tables[0], torch.cat([batch.images for batch in batches]), tables[1])


def publish(
    run: Run[configs.RunConfig], cohort: Cohort, plan: pd.DataFrame, writer: DatasetWriter, models: str
) -> Published:
    """Put kept images that copy no other one into images/, and all rows into manifest.parquet."""
    kept, results = writer.kept(), writer.results()
    if len(kept):
        twins = copies(list(kept.index), writer.read, run.config.checks.max_correlation)
        results = pd.concat([results, pd.DataFrame([vars(twin) for twin in twins])], ignore_index=True)
        kept = kept.drop([twin.uid for twin in twins if not twin.passed])
    write_table(run.path("checks.parquet"), results)
    writer.publish(kept.index)
    run.record(counts={"planned": len(plan), "kept": len(kept), "rejected": len(plan) - len(kept)})
    if kept.empty:
        cohort.manifest.write(run.path("manifest.parquet"))
        return Published(cohort.manifest.where(pd.Series(False, cohort.manifest.rows.index)), results)
    made = _manifest(run, cohort, kept, models)
    write_metadata(run.folder, made.rows, made.findings)
    if run.config.format == "dicom":
        write_dicom(run.folder, made.rows, made.findings)
    cohort.manifest.join(made).write(run.path("manifest.parquet"))
    return Published(made, results)


def _manifest(run: Run[configs.RunConfig], cohort: Cohort, kept: pd.DataFrame, models: str) -> Manifest:
    """Synthetic rows: a patient of their own, the train split, the view they were planned with, and what made them."""
    views = kept["view"] if "view" in kept else cohort.train.rows["view"].reindex(kept["tail_parent"]).to_numpy()
    rows = kept.assign(
        patient_id=[f"synthetic-{uid}" for uid in kept.index],
        split="train",
        view=views,
        synthetic=True,
        weight=(run.config.evaluation or configs.EvaluationConfig()).synthetic_weight,
        method=run.config.method.kind,
        models=models,
    )
    return Manifest(rows, cohort.findings, run.folder)
