"""Finished runs side by side: images that each method made, kept and lost, and kept images against held-out real ones.

    python benchmarks/methods.py runs/phantom_{unguided,fusion,diffult,minority,longtail}_{0,1,2} --picture FILE.png

It reads the files of the run folders, and trains and samples nothing. Runs whose names differ only in a last _NUMBER
are seeds of one method: a cell is their mean ± its standard error between seeds. A single run has Wilson 95 % intervals
for shares of images. `--picture` writes the kept images: a panel a method, a row a finding, the first images of each,
of the first seed, without selection.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import table
from PIL import Image
from scipy.stats import binomtest

CHECKS = ("finite", "flat", "saturated", "duplicate", "target_label", "label_consistency", "in_band", "near_copy")
NOT_TRAINING = ("synthesis", "quality", "embedding", "report", "arms", "verdict")
"""Stages of run.json that are no training of the generator."""
CARRIED = {"lesion_carried": "lesion carried", "mask_share": "area of the mask"}
METRICS = ("KID", "KID sd", "precision", "recall", "density", "coverage", "AvgkNN", "LOF", "rarity outside")


@dataclass(frozen=True)
class Share:
    """So many of so many images."""

    hits: int
    of: int

    def __float__(self) -> float:
        return self.hits / self.of if self.of else float("nan")

    def __str__(self) -> str:
        """The share with its Wilson 95 % interval."""
        if not self.of:
            return "-"
        low, high = binomtest(self.hits, self.of).proportion_ci(method="wilson")
        return f"{float(self):.2f} [{low:.2f}, {high:.2f}]"


def counts(run: Path) -> dict[str, Any]:
    """What was tried and kept, the share of tried images that passed each check, and the guide's displacement."""
    record, results = json.loads((run / "run.json").read_text()), pd.read_parquet(run / "checks.parquet")
    rows: dict[str, Any] = {"tried": float(record["counts"]["planned"]), "kept": float(record["counts"]["kept"])}
    for check in CHECKS:
        mine = results[results["check"] == check]
        rows[f"passed: {check}"] = Share(int(mine["passed"].sum()), len(mine))
    label = results[results["check"] == "label_consistency"]["value"]
    rows["verifier's probability of the finding"] = float(label.mean())
    for guide in record.get("guidance", ()):
        rows |= {"weight": guide["weight"], "displacement": guide["displacement"]}
    seconds = record["seconds"]
    rows["seconds: training"] = float(sum(v for k, v in seconds.items() if k not in NOT_TRAINING))
    return rows | {"seconds: synthesis": float(seconds.get("synthesis", 0))}


def located_in(run: Path) -> dict[str, float]:
    """Share of the known lesion, and of all pixels, that came from the tail image."""
    if not (place := run / "localisation.parquet").is_file():
        return {}
    made = pd.read_parquet(place).query("finding == 'overall' and stage == 'images'").set_index("metric")["value"]
    return {name: float(made[key]) for key, name in CARRIED.items() if key in made}


def quality_of(run: Path) -> dict[str, float]:
    """Overall quality of the kept images against the validation split."""
    if not (place := run / "quality.parquet").is_file():
        return {}
    overall = pd.read_parquet(place).query("finding == 'overall'").set_index("metric")
    counted = {"held-out real": float(overall["n_real"].iloc[0])}
    return counted | {name: float(overall.at[name, "value"]) for name in METRICS if name in overall.index}


def cell(values: list[Any]) -> str:
    """One value, or the mean of several seeds with its standard error between them."""
    known = np.array([float(value) for value in values])
    known = known[~np.isnan(known)]
    if not len(known):
        return "-"
    if len(values) == 1:
        return str(values[0]) if isinstance(values[0], Share) else f"{known[0]:.4g}"
    if len(known) == 1:
        return f"{known[0]:.3g} (one seed)"
    return f"{known.mean():.3g} ± {known.std(ddof=1) / sqrt(len(known)):.2g}"


def methods(runs: list[Path]) -> dict[str, list[Path]]:
    """The runs of each method: their names without the number of the seed."""
    grouped: dict[str, list[Path]] = {}
    for run in runs:
        grouped.setdefault(re.sub(r"_\d+$", "", run.name), []).append(run)
    return grouped


def panel(run: Path, findings: list[str], columns: int = 5, side: int = 64) -> np.ndarray:
    """uint8 [rows x side, columns x side]: the first kept images of each finding; black where there is none."""
    made = pd.read_parquet(run / "manifest.parquet")
    made = made[made["synthetic"].fillna(False).astype(bool)]
    canvas = np.zeros((len(findings) * side, columns * side), np.uint8)
    for row, name in enumerate(findings):
        for column, path in enumerate(made.loc[made["finding"] == name, "path"].head(columns)):
            tile = Image.open(run / path).convert("L").resize((side, side), Image.Resampling.BOX)
            canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = np.asarray(tile)
    return canvas


def picture(runs: list[Path], place: Path) -> None:
    """Panels side by side, the findings of the first run's plan from top to bottom."""
    findings = sorted(pd.read_parquet(runs[0] / "plan.parquet")["finding"].unique())
    panels = [np.pad(panel(run, findings), ((0, 0), (0, 12)), "constant", constant_values=255) for run in runs]
    Image.fromarray(np.hstack(panels)[:, :-12]).save(place, optimize=True)
    print("rows:", ", ".join(findings), "| panels:", ", ".join(run.name for run in runs))


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("runs", nargs="+", type=Path)
    read.add_argument("--picture", type=Path)
    args = read.parse_args()
    grouped = methods(args.runs)
    if args.picture:
        picture([seeds[0] for seeds in grouped.values()], args.picture)
    columns: dict[str, dict[str, str]] = {}
    for name, seeds in grouped.items():
        figures = pd.DataFrame([counts(run) | located_in(run) | quality_of(run) for run in seeds], dtype=object)
        columns[name] = {row: cell(list(figures[row].fillna(float("nan")))) for row in figures}
    order = list(dict.fromkeys(row for one in columns.values() for row in one))
    whole = pd.DataFrame(columns).reindex(order).fillna("-")
    lines = [" | ".join(["", *whole.columns]), "|".join(["---"] * (1 + len(columns)))]
    lines += [" | ".join([str(name), *row]) for name, row in zip(whole.index, whole.to_numpy(), strict=True)]
    table(f"methods_{args.runs[0].name.split('_')[0]}", [f"| {line} |" for line in lines])


if __name__ == "__main__":
    main()
