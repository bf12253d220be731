"""The lesion retention of the sources of a comparison: retention.parquet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.evaluation.retention import retention_row, retention_table
from medlt.evaluation.sources import SourceImages
from medlt.files import write_table
from medlt.recipes._cohort import Cohort
from medlt.recipes._setup import RunFolder
from medlt.rng import numpy_generator
from medlt.synthesis.lesions import Move

MOST = 100
"""Images of a finding and source that are measured, at most."""
MOVED = ("scale", "rotation", "down", "right", "reflected")


def write_retention(run: RunFolder[Any], cohort: Cohort, sources: Mapping[str, SourceImages], size: int) -> None:
    """Write the share of each finding's contrast that each source keeps, where masks or boxes of parents are known."""
    rows = [
        _row(cohort, source, finding, part, size, run.config)
        for source in sources.values()
        for finding, part in _known(cohort, source).items()
    ]
    if rows:
        write_table(run.path("retention.parquet"), retention_table(rows))


def _known(cohort: Cohort, source: SourceImages) -> dict[str, pd.DataFrame]:
    """Return finding -> kept rows whose tail image has a mask or box of it; {} for a source without tail images."""
    if source.empty or "tail_parent" not in source.kept:
        return {}
    parts: dict[str, pd.DataFrame] = {}
    for finding, rows in source.kept.groupby("finding", sort=False):
        known = rows[rows["tail_parent"].isin(cohort.regions.known(str(finding)))].iloc[:MOST]
        parts |= {str(finding): known} if len(known) else {}
    return parts


def _row(
    cohort: Cohort, source: SourceImages, finding: str, rows: pd.DataFrame, size: int, config: Any
) -> dict[str, object]:
    uids = [str(uid) for uid in dict.fromkeys(rows["tail_parent"])]
    at = torch.tensor([uids.index(uid) for uid in rows["tail_parent"]])
    real = cohort.images(cohort.manifest, size, uids).float() / 255
    regions = cohort.regions.masks(uids, finding, size)[at]
    made = source.images(size, [str(uid) for uid in rows.index]).float() / 255
    owners = cohort.manifest.rows.loc[rows["tail_parent"], "patient_id"].astype(str)
    return retention_row(
        source.name, finding, real[at], made, (regions, _moved(regions, rows)), list(owners),
        n_bootstrap=config.evaluation.n_bootstrap,
        rng=numpy_generator(config.seed, "retention", source.name, finding),
    )  # fmt: skip


def _moved(regions: Tensor, rows: pd.DataFrame) -> Tensor:
    """Return where regions [B,S,S] lie in the synthetic images; a method that moves lesions says so in its plan."""
    if not set(MOVED) <= set(rows.columns):
        return regions
    moved = []
    for region, row in zip(regions, rows.to_dict("records"), strict=True):
        mask, move = np.asarray(region >= 0.5), Move.of({str(name): value for name, value in row.items()})
        moved.append(torch.from_numpy(move.apply(region, mask)[1]).to(region) if mask.any() else region)
    return torch.stack(moved)
