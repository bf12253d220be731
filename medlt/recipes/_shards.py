"""One shard of a plan: its images are joined, checked and written with the best of each slot."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from medlt import config as configs
from medlt.checks.consistency import LabelConsistency, best_of
from medlt.checks.target_label import TargetLabelCheck
from medlt.recipes._setup import RunFolder
from medlt.types import Batch, Check, CheckResult
from medlt.writer import DatasetWriter


def write_checked(
    run: RunFolder[configs.RunConfig], writer: DatasetWriter, rows: pd.DataFrame, batch: Batch, checks: Sequence[Check]
) -> None:
    """Check the images of a shard's rows, and write it."""
    by = TargetLabelCheck.name if run.config.data_independent else LabelConsistency.name
    results = [result for check in checks for result in check(batch)]
    write_best(writer, rows, batch, [*results, *best_of(batch.rows, results, by)])


def write_best(writer: DatasetWriter, rows: pd.DataFrame, batch: Batch, results: Sequence[CheckResult]) -> None:
    """Write a shard with the best image of each of its slots."""
    kept = [result.uid for result in results if result.check == "best_of" and result.passed]
    writer.write(rows, batch, results, kept)


def joined(batches: list[Batch]) -> Batch:
    """Return several batches as one."""
    tables = [pd.concat([getattr(batch, name) for batch in batches]) for name in ("rows", "labels")]
    return Batch(tables[0], torch.cat([batch.images for batch in batches]), tables[1])
