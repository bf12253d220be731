"""Make and check the images of a plan, keep the best of each slot, retry empty slots, and publish what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from medlt import config as configs
from medlt.checks.sanity import copies
from medlt.data.manifest import Manifest
from medlt.diffusion.prefetch import prefetch
from medlt.files import digest, write_table
from medlt.recipes._checks import classifier_identity
from medlt.recipes._cohort import Cohort
from medlt.recipes._methods import Built
from medlt.recipes._setup import RunFolder
from medlt.recipes._shards import joined, write_checked
from medlt.recipes._workers import in_workers, make_in_workers
from medlt.types import Check
from medlt.writer import DatasetWriter, write_dicom, write_metadata

SLOTS = 32
"""Number of whole slots in a shard; a killed run loses at most one shard."""


def make_images(
    run: RunFolder[configs.RunConfig],
    cohort: Cohort,
    built: Built,
    checks: Sequence[Check],
    models: str,
    run_id: str,
) -> tuple[pd.DataFrame, DatasetWriter]:
    """Make and check the images of the whole plan, and return the rows that were used (plan.parquet) and the writer.

    A slot without a passing candidate is retried with new candidates, up to `targets.max_retries` times. Every round is
    a function of the round before, so a killed run resumes to the same result. `models` is a digest of the models;
    `run_id` is written into every image.
    """
    targets = run.config.targets
    writer = DatasetWriter(run.folder, models=_named(run, cohort, models), run_id=run_id)
    whole = built.method.plan(cohort.shortfall(), run.config.seed)
    tried = whole.iloc[:0]
    for turn in range(1 + targets.max_retries):
        filled = _filled(writer.kept(), turn * targets.num_candidates)
        slots = whole[["finding", "slot"]].itertuples(index=False, name=None)
        empty = pd.Series([slot not in filled for slot in slots], index=whole.index, dtype=bool)
        rows = whole[empty & (whole["candidate"] // targets.num_candidates == turn)]
        tried = pd.concat([tried, rows])
        write_table(run.path("plan.parquet"), tried)
        _make_round(run, writer, built, rows, checks)
    return tried, writer


def _named(run: RunFolder[configs.RunConfig], cohort: Cohort, models: str) -> str:
    """Return a digest of all that decides which images are kept: models, real rows, settings of verifiers and checks.

    In a data-independent run, real rows decide nothing.
    """
    config = run.config
    chosen = [config.method.model_dump(mode="json"), config.checks.model_dump(mode="json"), config.size, config.seed,
              config.precision, config.latents, config.plugin_versions]  # fmt: skip
    real = [] if config.data_independent else [cohort.manifest.digest(), classifier_identity(config.classifier)]
    return digest("images", 1, models, chosen, real)


def shards(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield plan rows in shards of whole slots."""
    slot = rows.groupby(["finding", "slot"], sort=False).ngroup()
    for _, piece in rows.groupby(slot // SLOTS):
        yield piece


def _filled(kept: pd.DataFrame, before: int) -> set[tuple[str, int]]:
    """Return (finding, slot) of the kept images of earlier rounds, with candidate numbers below `before`."""
    if kept.empty:
        return set()
    return set(kept.loc[kept["candidate"] < before, ["finding", "slot"]].itertuples(index=False, name=None))


def _make_round(
    run: RunFolder[configs.RunConfig], writer: DatasetWriter, built: Built, rows: pd.DataFrame,
    checks: Sequence[Check],
) -> None:  # fmt: skip
    """Make, check and write every shard that does not exist yet."""
    if in_workers(run.config):
        make_in_workers(run, writer, list(shards(rows)), built.strengths)
        return
    made = ((piece, None if writer.has(piece) else joined(list(built.method.run(piece)))) for piece in shards(rows))
    done = 0
    # an accelerator makes the next shard while this one is checked and written; a CPU is busy either way
    for piece, batch in made if run.runtime.device == "cpu" else prefetch(made):
        if batch is not None:
            write_checked(run, writer, piece, batch, checks)
        run.runtime.progress("images", done := done + len(piece), len(rows))


def publish(
    run: RunFolder[configs.RunConfig], cohort: Cohort, plan: pd.DataFrame, writer: DatasetWriter, models: str
) -> Manifest:
    """Write the kept images that copy no other one to images/, and all rows to manifest.parquet; return those made.

    checks.parquet holds the results of all checks of all images that were made.
    """
    kept = writer.kept()
    twins = copies(list(kept.index), writer.read, run.config.checks.max_correlation) if len(kept) else []
    writer.write_results(run.path("checks.parquet"), twins)
    kept = kept.drop([twin.uid for twin in twins if not twin.passed])
    kept = kept.assign(path=writer.publish(kept.index))
    run.record(counts={"planned": len(plan), "kept": len(kept), "rejected": len(plan) - len(kept)})
    if kept.empty:
        cohort.manifest.write(run.path("manifest.parquet"))
        return cohort.manifest.where(pd.Series(False, cohort.manifest.rows.index))
    made = _manifest(run, cohort, kept.assign(run=writer.run_id), models)
    write_metadata(run.folder, made.rows, made.findings, parents=run.config.privacy is None)
    if run.config.format == "dicom":
        write_dicom(run.folder, made.rows, made.findings)
    cohort.manifest.join(made).write(run.path("manifest.parquet"))
    return made


def _manifest(run: RunFolder[configs.RunConfig], cohort: Cohort, kept: pd.DataFrame, models: str) -> Manifest:
    """Return the synthetic rows: each a patient of its own in the train split, with view, method and models."""
    views = kept["view"] if "view" in kept else cohort.train.rows["view"].reindex(kept["tail_parent"]).to_numpy()
    rows = kept.assign(
        patient_id=[f"synthetic-{uid}" for uid in kept.index],
        split="train",
        view=views,
        synthetic=True,
        weight=(run.config.evaluation or configs.EvaluationConfig()).weights[0],
        method=run.config.method.kind,
        models=models,
    )
    return Manifest(rows, cohort.findings, run.folder)
