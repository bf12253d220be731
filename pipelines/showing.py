"""What a run shows of its images: strips that tell how one came about, and one grid of many."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from PIL import Image

from medlt.files import write_bytes, write_table
from medlt.report.panels import png, save
from medlt.runs import Run

GAP = 2


def panels(run: Run, explain: Callable[[pd.DataFrame], dict[str, torch.Tensor]], each: int = 3) -> None:
    """Strips for the report: of every finding the first kept images, and one that the checks turned down."""
    plan, made = pd.read_parquet(run.path("plan.parquet")), pd.read_parquet(run.path("manifest.parquet"))
    kept = plan.index.isin(made.index)
    chosen = pd.concat([plan[kept].groupby("finding").head(each), plan[~kept].groupby("finding").head(1)])
    chosen = chosen.assign(kept=chosen.index.isin(made.index)).sort_values(["finding", "kept"], ascending=[True, False])
    stages = explain(chosen)
    files = [
        save(run.folder, str(uid), {name: tiles[i] for name, tiles in stages.items()})
        for i, uid in enumerate(chosen.index)
    ]
    write_table(run.path("panels.parquet"), chosen[["finding", "kept"]].assign(file=files))


def grid(run: Run, each: int = 8) -> None:
    """grid.png: a row of kept images for every finding that was filled, and grid.csv, which says what stands where."""
    made = pd.read_parquet(run.path("manifest.parquet"))
    if "synthetic" not in made or not made["synthetic"].fillna(False).any():
        return
    chosen = made[made["synthetic"].fillna(False).astype(bool)].groupby("finding", sort=True).head(each)
    side = run.config.size + GAP
    names = sorted(chosen["finding"].unique())
    column = chosen.groupby("finding").cumcount()
    canvas = np.zeros((side * len(names) - GAP, side * (int(column.max()) + 1) - GAP), np.uint8)
    for uid, row in chosen.iterrows():
        top, left = side * names.index(row["finding"]), side * int(column[uid])
        with Image.open(run.path(row["path"])) as image:
            canvas[top : top + run.config.size, left : left + run.config.size] = np.asarray(image)
    write_bytes(run.path("grid.png"), png(Image.fromarray(canvas)))
    told = chosen[["finding"]].assign(column=column)
    write_bytes(run.path("grid.csv"), told.to_csv().encode())
