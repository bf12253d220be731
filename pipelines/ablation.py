"""Ablation of latent fusion: one setting at a time round a base config, all else shared, one row a variant.

Data, codec, latents, denoiser and judges are those of one run folder. A sparse code is learnt once for each of its
settings and seeds; fewer generations are the beginning of more (`medlt.sparse.iterated`), so all counts of generations
come from one learning. Every variant has the same plan rows as the base: same parents, thresholds' draws and noise,
unless that is what it varies.

    variants/NAME.parquet, NAME.json    images and figures of one variant; one that is there is not made again
    ablation.parquet, .csv, .md         factor, value, is_base, seed and the figures (`medlt.evaluation.variants`)

`kid` holds all images made, seen by the judges that never saw their parents, against validation images with a tail
finding, so that a setting may be chosen by it.
The first row, factor "real", says the same of real train images with a tail finding.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from medlt import config as configs
from medlt.evaluation.variants import against, as_markdown
from medlt.files import write_json, write_table, write_text
from medlt.runs import Run
from pipelines import checking, denoising, learnt
from pipelines.stages import Progress, quiet
from pipelines.study import Study
from pipelines.variant import Variant, variants


def main(config: configs.RunConfig, progress: Progress = quiet) -> Path:
    """Run or resume; returns the run folder, which is one of recipe fusion: more may be varied in it later.

    Raises InputError, before anything is made, for a value that is not allowed.
    """
    assert config.ablation is not None  # the config's own check
    base = config.model_copy(update={"recipe": "fusion", "ablation": None})
    wanted = variants(base, config.ablation)
    ready = learnt.learn(base, progress)
    backbone = denoising.denoiser(ready.run, ready.real, ready.latents, progress)
    study = Study(ready, backbone, checking.checks(base, ready.real, ready.judges), config.ablation.downstream)
    with ready.run.stage("ablation"):
        for done, one in enumerate(wanted):
            _finish(study, one)
            progress("variants", done + 1, len(wanted))
        _write(ready.run, pd.concat([_real(study), _table(ready.run, wanted)], ignore_index=True))
    return ready.run.folder


def _place(run: Run, one: Variant, kind: str) -> Path:
    return run.path("variants", f"{one.name}.{kind}")


def _finish(study: Study, one: Variant) -> None:
    """Its images' figures, and then its own, unless they are there, with those of its arms if they are wanted."""
    run, place = study.ready.run, _place(study.ready.run, one, "json")
    if not place.exists() or (study.downstream and "tail_ap_difference" not in json.loads(place.read_text())):
        images, figures = study.figures(one)
        write_table(_place(run, one, "parquet"), images)
        write_json(place, {k: None if math.isnan(v) else v for k, v in figures.items()})


def _row(run: Run, one: Variant, base: pd.DataFrame) -> dict[str, Any]:
    figures = json.loads(_place(run, one, "json").read_text())
    images = pd.read_parquet(_place(run, one, "parquet"))
    known = {name: math.nan if value is None else value for name, value in figures.items()}
    named = {"factor": one.factor, "value": str(one.value), "is_base": one.is_base, "seed": one.seed}
    return named | known | against(images, base)


def _table(run: Run, wanted: list[Variant]) -> pd.DataFrame:
    bases = {one.seed: pd.read_parquet(_place(run, one, "parquet")) for one in wanted if one.factor == "base"}
    table = pd.DataFrame([_row(run, one, bases[one.seed]) for one in wanted])
    order = {name: n for n, name in enumerate(table["factor"].unique())}
    return table.sort_values("factor", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def _real(study: Study) -> pd.DataFrame:
    """The row beside which all others are read."""
    return pd.DataFrame([{"factor": "real", "value": "train", "is_base": False, "seed": 0, **study.reference()}])


def _write(run: Run, table: pd.DataFrame) -> None:
    write_table(run.path("ablation.parquet"), table)
    write_text(run.path("ablation.csv"), table.to_csv(index=False))
    write_text(run.path("ablation.md"), as_markdown(table))
