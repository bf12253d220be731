"""Pictures that a run leaves for its report: strips, the grid, rejected images, and images of sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from medlt import config as configs
from medlt.csv_text import as_csv
from medlt.data.convert.encode import png
from medlt.data.manifest import Manifest
from medlt.evaluation.sources import SourceImages
from medlt.files import write_bytes, write_table, write_text
from medlt.recipes._setup import RunFolder
from medlt.report.grid import GAP, titles_of
from medlt.report.panels import save_panel
from medlt.types import Synthesizer
from medlt.writer import DatasetWriter, synthetic_png, to_uint8

REJECTED = 24
"""Most rejected images that are made again for the report."""
SOURCE = 32
"""Most images of one source in the folder of an experiment."""
LAST = "best_of"
"""Check that only images without another failure fail."""


def show_panels(
    run: RunFolder[configs.RunConfig], method: Synthesizer, plan: pd.DataFrame, made: Manifest, each: int = 3
) -> None:
    """Write strips for the report, if the method explains its images: the first kept images of every finding, and one
    that the checks rejected."""
    kept = plan.index.isin(made.rows.index)
    chosen = pd.concat([plan[kept].groupby("finding").head(each), plan[~kept].groupby("finding").head(1)])
    chosen = chosen.assign(kept=chosen.index.isin(made.rows.index))
    chosen = chosen.sort_values(["finding", "kept"], ascending=[True, False])
    if not (stages := method.explain(chosen)):
        return
    side = max(128, min(256, run.config.image_size))
    files = [
        save_panel(run.folder, str(uid), {name: tiles[i] for name, tiles in stages.items()}, side)
        for i, uid in enumerate(chosen.index)
    ]
    write_table(run.path("panels.parquet"), chosen[["finding", "kept"]].assign(file=files))


def show_grid(run: RunFolder[configs.RunConfig], made: Manifest, each: int = 8) -> None:
    """Write grid.png, a row of kept images per finding with its name, and grid.csv, which names them."""
    if made.rows.empty:
        return
    chosen = made.rows.groupby("finding", sort=True).head(each)
    size = run.config.image_size
    side = size + GAP
    names = sorted(chosen["finding"].unique())
    column = chosen.groupby("finding").cumcount()
    titles = titles_of(names, size)
    canvas = np.zeros((side * len(names) - GAP, titles.shape[1] + side * (int(column.max()) + 1) - GAP), np.uint8)
    canvas[:, : titles.shape[1]] = titles
    for uid, row in chosen.iterrows():
        top, left = side * names.index(row["finding"]), titles.shape[1] + side * int(column[uid])
        with Image.open(made.local_file(str(uid))) as image:
            canvas[top : top + size, left : left + size] = np.asarray(image)
    write_bytes(run.path("grid.png"), synthetic_png(canvas, run_id=str(chosen["run"].iloc[0])))
    write_text(run.path("grid.csv"), as_csv(chosen[["finding"]].assign(column=column), index=True))


def show_rejected(
    run: RunFolder[configs.RunConfig], writer: DatasetWriter, method: Synthesizer, plan: pd.DataFrame, made: Manifest
) -> None:
    """Make some rejected images again, and write them with rejected_images.parquet: one per finding and failed check.

    Only kept images are stored with a run. A plan row gives the same image whenever it is made.
    """
    failed = pd.read_parquet(
        run.path("checks.parquet"), columns=["check", "uid", "passed"], filters=[("passed", "==", False)]
    )
    chosen = rejected_rows(plan[~plan.index.isin(made.rows.index)], failed).head(REJECTED)

    def build(folder: Path) -> None:
        files = []
        for batch in method.run(chosen):
            for uid, pixels in zip(batch.rows.index, to_uint8(batch.images.nan_to_num().clamp(0, 1)), strict=True):
                files.append(f"rejected_images/{quote(str(uid), safe='')}.png")
                write_bytes(folder / files[-1], synthetic_png(pixels, str(uid)))
        write_table(folder / "rejected_images.parquet", chosen[["finding"]].assign(file=files))

    if len(chosen):
        writer.keep("rejected_images", chosen, build)


def rejected_rows(rejected: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Return one plan row for each finding and failed check, those that lost to another candidate last."""
    failed = results[~results["passed"].astype(bool) & results["uid"].isin(rejected.index)]
    first = failed.assign(last=failed["check"] == LAST, finding=rejected["finding"].reindex(failed["uid"]).to_numpy())
    first = first.sort_values(["last", "uid"], kind="stable").drop_duplicates("uid")
    return rejected.loc[first.drop_duplicates(["finding", "check"])["uid"]]


def show_sources(
    run: RunFolder[configs.EvaluateConfig], sources: Mapping[str, SourceImages], most: int = SOURCE
) -> None:
    """Write images of every source, as the arms see them, with source_images.parquet; every finding in turn.

    `real` marks the images of a source that codes real ones.
    """
    size, rows = run.config.classifier.size, []
    for name, source in sources.items():
        if source.empty:
            continue
        turn = source.kept.groupby("finding").cumcount()
        chosen = source.kept.assign(turn=turn).sort_values(["turn", "finding"], kind="stable").head(most)
        real = run.config.sources[name].codec_of is not None
        pixels = source.images(size, [str(uid) for uid in chosen.index])[:, 0].numpy()
        for uid, finding, image in zip(chosen.index.astype(str), chosen["finding"], pixels, strict=True):
            file = Path("source_images", quote(name, safe=""), f"{quote(uid, safe='')}.png").as_posix()
            write_bytes(run.path(file), png(image, {}) if real else synthetic_png(image, uid))
            rows.append((name, uid, str(finding), file, real))
    if rows:
        columns = ["source", "uid", "finding", "file", "real"]
        write_table(run.path("source_images.parquet"), pd.DataFrame(rows, columns=columns))
