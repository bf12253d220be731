"""Finished runs side by side: images that each method made, kept and lost, and kept images against held-out real ones.

    python benchmarks/methods.py runs/nih14_fusion runs/nih14_diffult runs/nih14_minority runs/nih14_longtail

It reads the files of the run folders, and trains and samples nothing. Shares of made images have Wilson 95 %
intervals. `--picture FILE.png` also writes the kept images: a panel per run, a row per finding, the first images of
each, without selection.
"""

from __future__ import annotations

import argparse
import json
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from common import table
from PIL import Image

CHECKS = ("finite", "flat", "saturated", "duplicate", "target_label", "label_consistency", "in_band", "near_copy")
NOT_TRAINING = ("synthesis", "quality", "embedding", "report", "arms", "verdict")
"""Stages of run.json that are no training of the generator."""
METRICS = ("KID", "KID sd", "precision", "recall", "density", "coverage", "AvgkNN", "LOF", "rarity outside")


def wilson(hits: int, of: int, z: float = 1.96) -> str:
    """Share with its interval."""
    if not of:
        return "-"
    share, spread = hits / of, z * sqrt(hits / of * (1 - hits / of) / of + z * z / (4 * of * of))
    low, high = ((share + z * z / (2 * of) + sign * spread) / (1 + z * z / of) for sign in (-1, 1))
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"


def counts(run: Path) -> dict[str, str]:
    """What was tried and kept, and the share of tried images that passed each check."""
    record, results = json.loads((run / "run.json").read_text()), pd.read_parquet(run / "checks.parquet")
    rows = {"tried": str(record["counts"]["planned"]), "kept": str(record["counts"]["kept"])}
    for check in CHECKS:
        mine = results[results["check"] == check]
        rows[f"passed: {check}"] = wilson(int(mine["passed"].sum()), len(mine))
    label = results[results["check"] == "label_consistency"]["value"]
    rows["verifier's probability of the finding"] = f"{label.mean():.3f} ± {label.sem():.3f}"
    seconds = record["seconds"]
    rows["seconds: training, synthesis"] = f"{sum(v for k, v in seconds.items() if k not in NOT_TRAINING):.0f}, " + (
        f"{seconds.get('synthesis', 0):.0f}"
    )
    return rows


def quality_of(run: Path) -> dict[str, str]:
    """Overall quality of the kept images against the validation split."""
    if not (place := run / "quality.parquet").is_file():
        return {}
    overall = pd.read_parquet(place).query("finding == 'overall'").set_index("metric")
    counted = {"kept, held-out real": f"{overall['n_synthetic'].iloc[0]}, {overall['n_real'].iloc[0]}"}
    return counted | {name: f"{overall.at[name, 'value']:.3f}" for name in METRICS if name in overall.index}


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
    panels = [np.pad(panel(run, findings), ((0, 0), (0, 12)), constant_values=255) for run in runs]
    Image.fromarray(np.hstack(panels)[:, :-12]).save(place, optimize=True)
    print("rows:", ", ".join(findings), "| panels:", ", ".join(run.name for run in runs))


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("runs", nargs="+", type=Path)
    read.add_argument("--picture", type=Path)
    args = read.parse_args()
    runs = args.runs
    if args.picture:
        picture(runs, args.picture)
    columns = {run.name: counts(run) | quality_of(run) for run in runs}
    whole = pd.DataFrame(columns).fillna("-")
    lines = [" | ".join(["", *whole.columns]), "|".join(["---"] * (1 + len(columns)))]
    lines += [" | ".join([str(name), *row]) for name, row in zip(whole.index, whole.to_numpy(), strict=True)]
    table(f"methods_{runs[0].name.split('_')[0]}", [f"| {line} |" for line in lines])


if __name__ == "__main__":
    main()
