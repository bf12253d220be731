"""The audit of three denoisers with known leaks: an over-trained, an ordinary and a private one.

    MEDLT_DATA=... python benchmarks/privacy_audit.py runs/privacy_audit [--canaries N]

The over-trained one is nih14/overtrained, which uses each of the eleven train images with a hernia about 4,000 times.
The ordinary one is nih14/unguided, the private one nih14/private. Existing runs and audits are not made again.
Members are the train patients of each run; non-members are the validation and test patients.
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


def table_cells(record: dict[str, Any], folder: Path) -> str:
    """One row of the table."""
    parts = {one["name"]: one for one in record["results"]}
    words = {True: "no leak", False: "LEAK", None: "cannot conclude"}
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
    images = pd.read_parquet(folder / "near_copies.parquet")
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
    args = read.parse_args()
    hernias(Path(os.environ["MEDLT_DATA"]), args.out / "hernia.csv")
    lines = [
        "| denoiser | claim | near copies | membership | TPR, 0.1 % FPR | TPR, 1 % FPR | re-identified "
        "| epsilon at least |",
        "|---|---|---|---|---|---|---|---|",
    ]
    sentences = []
    for name, config in RUNS.items():
        folder = configs.load_config(Path(config)).output_dir
        if not (folder / "manifest.parquet").is_file():
            augment.main(configs.load_config(Path(config)))
        if not (folder / "audit.json").is_file():
            audit.main(folder, audit.AuditOptions(canaries=args.canaries if name == "private" else 0))
        record = json.loads((folder / "audit.json").read_text())
        stated = claim(folder)
        word = (
            "none" if stated.epsilon is None else f"({stated.epsilon:.2f}, {stated.delta:g}) by {stated.privacy_unit}"
        )
        lines.append(f"| {name} | {word} | {table_cells(record, folder)} |")
        sentences += ["", f"**{name}**", "", *(f"- {one['name']}: {one['sentence']}" for one in record["results"])]
    table("privacy_audit", lines + sentences)


if __name__ == "__main__":
    main()
