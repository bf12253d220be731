"""From kept images to a published data set: twins dropped, provenance beside each, one manifest for all."""

from __future__ import annotations

import pandas as pd

from medlt.checks.sanity import copies
from medlt.data.manifest import Manifest
from medlt.files import write_table
from medlt.runs import Run
from medlt.types import Finding
from medlt.writer import DatasetWriter, write_dicom, write_metadata
from pipelines.stages import Collection


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
