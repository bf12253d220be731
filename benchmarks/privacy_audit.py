"""The audit held against what it must and must not find: an over-trained, an ordinary and a private denoiser.

    MEDLT_DATA=... python benchmarks/privacy_audit.py runs/privacy_audit [--canaries N]

The over-trained one saw the eleven train images with a hernia some 4,000 times each (nih14/overtrained),
the ordinary one is nih14/unguided, the private one nih14/private. Runs and audits that
are there are not made again. Members are each run's own train patients, the others the validation and test patients.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from common import table

from medlt import config as configs
from medlt.privacy import claim
from medlt.recipes import audit, augment

RUNS = {
    "over-trained, 11 images": "nih14/overtrained",
    "ordinary": "nih14/unguided",
    "private": "nih14/private",
}


def hernias(data: Path, out: Path) -> None:
    """The label table with the train images of a hernia alone, and all validation and test images."""
    rows = pd.read_csv(data / "nih14" / "labels.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows[(rows["split"] != "train") | (rows["Hernia"] == 1)].to_csv(out, index=False)


def told(found: dict[str, Any], folder: Path) -> str:
    """One row of the table."""
    parts = {one["name"]: one for one in found["results"]}
    words = {True: "not found", False: "FOUND", None: "cannot say"}
    copies, members, known = (parts[name] for name in ("near_copies", "membership", "reidentification"))
    rates = {row["fpr"]: row for row in members.get("rates", []) if row["unit"] == "patient"}
    cells = [words[copies["passed"]] + _hits(copies, folder), words[members["passed"]] + _area(members)]
    cells += [f"{row['tpr']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rates.values()]
    cells += [words[known["passed"]] + _links(known)]
    canary = parts.get("canaries")
    cells += [f"{canary['bound']:.2f}" if canary and "bound" in canary else "-"]
    return " | ".join(cells)


def _hits(part: dict[str, Any], folder: Path) -> str:
    if "plants" not in part:
        return ""
    images = pd.read_parquet(folder / "copies.parquet")
    return f": {int(images['hit'].sum())} of {len(images)}, {part['expected']:.1f} by chance"


def _area(part: dict[str, Any]) -> str:
    if "auc" not in part:
        return ""
    area = part["auc"]
    return f": AUC {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]"


def _links(part: dict[str, Any]) -> str:
    return f": {part['linked']['value']:.3f} against {part['null']['value']:.3f}" if "linked" in part else ""


def main() -> None:
    """Make what is not there, audit all, write the table."""
    read = argparse.ArgumentParser()
    read.add_argument("out", type=Path)
    read.add_argument("--canaries", type=int, default=0)
    asked = read.parse_args()
    hernias(Path(os.environ["MEDLT_DATA"]), asked.out / "hernia.csv")
    lines = [
        "| denoiser | claim | copies | membership | TPR, 0.1 % FPR | TPR, 1 % FPR | re-identified | epsilon at least |",
        "|---|---|---|---|---|---|---|---|",
    ]
    sentences = []
    for name, config in RUNS.items():
        folder = configs.load(Path(config)).output_dir
        if not (folder / "manifest.parquet").is_file():
            augment.main(configs.load(Path(config)))
        if not (folder / "audit.json").is_file():
            audit.main(folder, audit.AuditOptions(canaries=asked.canaries if name == "private" else 0))
        found = json.loads((folder / "audit.json").read_text())
        said = claim(folder)
        word = "none" if said.epsilon is None else f"({said.epsilon:.2f}, {said.delta:g}) by {said.unit}"
        lines.append(f"| {name} | {word} | {told(found, folder)} |")
        sentences += ["", f"**{name}**", "", *(f"- {one['name']}: {one['sentence']}" for one in found["results"])]
    table("privacy_audit", lines + sentences)


if __name__ == "__main__":
    main()
