"""The stages of synthetic images of a finished run, made again from their rows of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from medlt.files import read_table
from medlt.recipes._cohort import filed_cohort
from medlt.recipes._learn import learn
from medlt.recipes._methods import build_method
from medlt.recipes._setup import finished
from medlt.synthesis.fusion import LatentFusion
from medlt.training.runtime import silent
from medlt.types import InputError, Progress


def main(folder: Path, uids: Sequence[str], progress: Progress = silent) -> dict[str, Tensor]:
    """Return stage -> [N,1,H,W] in [0,1] for these rows of the plan, and of latent fusion also its codes.

    Nothing is trained that the run's artifacts still hold. Raises InputError for a run that is not finished, a uid that
    is not in its plan, and a method that has no stages.
    """
    with (run := finished(Path(folder), progress)).runtime.limited():
        rows = _rows(run.path("plan.parquet"), uids)
        if run.config.privacy is not None:  # it starts from noise, and must not be trained a second time
            raise InputError(f"{run.folder}: a private run has no stages; use a run without the section privacy")
        method = build_method(run, learn(run, filed_cohort(run))).method
        stages = dict(method.explain(rows))
        if not stages:
            raise InputError(f"{run.folder}: method {run.config.method.kind} has no stages; use fusion or recompose")
        return stages | (method.codes(rows) if isinstance(method, LatentFusion) else {})


def _rows(file: Path, uids: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the plan. Raises InputError for a uid that is not there, and for none."""
    plan, wanted = read_table(file), list(map(str, uids))
    if not wanted or (strange := [uid for uid in wanted if uid not in plan.index]):
        what = f"has no image {strange[0]!r}" if wanted else "no uid is given"
        raise InputError(f"{file}: {what}; take uids from the index of run.plan")
    return plan.loc[wanted]
