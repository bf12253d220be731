"""How well maps find the boxes that radiologists drew on NIH ChestX-ray14.

    MEDLT_DATA=/data python benchmarks/localise_nih.py --networks 5 --steps 1200 --size 64

Reads $MEDLT_DATA/nih14 (labels.csv and images) and $MEDLT_DATA/labels_only/BBox_List_2017.csv.gz. The classifiers are
trained on labels of patients without a box, so no scored image was trained on. The prior is the usual place of a
finding in the boxes of all other patients, in the image or in the mean radiograph; images whose pixels are not at hand
have the pose of the mean. To score other maps, give `score` another function
(images [B,1,S,S] in [0,1], finding) -> maps [B,h,w].
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import table
from torch import Tensor

from medlt.classify.sets import TrainingSet
from medlt.classify.train import Classifier, fit_classifier
from medlt.config import CsvData
from medlt.data.boxes import atlas
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.data.regions import Regions
from medlt.data.source import open_data
from medlt.localise.maps import ImageMap
from medlt.localise.prior import AtUsualPlace, PositionPrior
from medlt.localise.register import MOST, MeanRadiograph
from medlt.metrics.localisation import macro_interval, mean_interval, measures
from medlt.rng import numpy_generator
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import Localise

Maps = Callable[[Tensor, str], Tensor]
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No_Finding",
)  # fmt: skip
GRID, DRAWS = (16, 16), 2000
SOURCE = "Pneumonia"
"""In this cut nearly a label of where the image came from, so it is also left out of the mean."""


@dataclass(frozen=True)
class Boxed:
    """The images with a box: uids by finding, their pixels at one size, and their patients."""

    regions: Regions
    pixels: Mapping[str, Tensor]
    patients: Mapping[str, str]

    def images(self, uids: Sequence[str]) -> Tensor:
        """Images [B,1,S,S] in [0,1]."""
        return torch.stack([self.pixels[uid] for uid in uids])

    def by_uid(self, maps: Maps) -> Localise:
        """Maps of images as a stage that takes uids."""
        return lambda uids, finding: maps(self.images(uids), finding)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name, value in {"networks": 5, "steps": 1200, "size": 64, "batch": 32, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDLT_DATA", "data")))
    parser.add_argument("--home", type=Path, default=Path("runs/localise_nih"))
    return parser.parse_args()


def number(name: str) -> str:
    """The patient's number in nih_00013118 or 00013118_008.png."""
    return str(int(name.removeprefix("nih_").partition("_")[0]))


def collection(given: argparse.Namespace) -> tuple[Manifest, Path]:
    """All images with their boxes, and the table of boxes."""
    boxes = given.data / "labels_only" / "BBox_List_2017.csv.gz"
    data = CsvData(table=given.data / "nih14" / "labels.csv", findings=FINDINGS, uid="image_id", boxes=boxes)
    return open_data(data, seed=given.seed, folder=Path()), boxes


def networks(manifest: Manifest, held: set[str], given: argparse.Namespace) -> list[Classifier]:
    """Classifiers of images of patients without a box; all steps, and the weights of the last one."""
    free = manifest.where(~manifest.rows["patient_id"].isin(held))
    sets = []
    for split in ("train", "val"):
        part = free.split(split)
        ones = np.ones(len(part.rows), np.float32)
        sets.append(TrainingSet(images(part, given.size), part.labels(), ones, tuple(part.rows.index)))
    logging.warning("%d train images of patients without a box", len(sets[0].uids))
    store, runtime = Store(given.home / "artifacts"), Runtime("cpu", "fp32", 1, given.seed)
    options = {"steps": given.steps, "batch_size": given.batch, "evaluate_every": given.steps, "patience": 1}
    return [
        fit_classifier(*sets, runtime=runtime.seeded("localise_nih", k), store=store, name=f"network {k}", **options)
        for k in range(given.networks)
    ]


def ensemble(members: Sequence[Classifier]) -> Maps:
    """The mean map of classifiers over shifts, as fusion makes it."""

    def maps(pixels: Tensor, finding: str) -> Tensor:
        names = [str(i) for i in range(len(pixels))]
        return ImageMap(members, lambda _: pixels, FINDINGS, GRID)(names, finding)

    return maps


def usual_place(table: Regions, own: Regions, patients: Mapping[str, str]) -> PositionPrior:
    """The usual place of each finding: the boxes `own` of images with pixels, and those of a table for all others."""
    others = {
        f: {n: c for n, c in of.items() if f"nih_{n.removesuffix('.png')}" not in own.boxes.get(f, {})}
        for f, of in table.boxes.items()
    }
    merged = Regions(boxes={f: {**others.get(f, {}), **own.boxes.get(f, {})} for f in FINDINGS})
    owners = {name: number(name) for of in others.values() for name in of} | {n: number(p) for n, p in patients.items()}
    return PositionPrior(merged, frozenset(owners), owners, GRID)


def registered(pixels: Tensor) -> Tensor:
    """Poses of images by the mean radiograph of evenly chosen ones."""
    chosen = np.linspace(0, len(pixels) - 1, min(MOST, len(pixels))).astype(int)
    return MeanRadiograph.of(pixels[chosen]).poses(pixels)


def score(boxed: Boxed, stage: Localise) -> dict[str, dict[str, np.ndarray]]:
    """Finding -> measure -> values of its boxed images."""
    values = {}
    for finding in boxed.regions.findings:
        uids = list(boxed.regions.known(finding))
        maps = stage(uids, finding)
        values[finding] = measures(maps.numpy(), boxed.regions.masks(uids, finding, GRID).numpy())
    return values


def lines(boxed: Boxed, scored: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], baseline: str) -> list[str]:
    """One line for each map and set of images; the last column is the paired difference from the baseline."""
    owners = {f: [boxed.patients[uid] for uid in boxed.regions.known(f)] for f in boxed.regions.findings}
    others = [f for f in boxed.regions.findings if f != SOURCE]
    sets = {"all boxes": list(owners), f"without {SOURCE}": others, **{f: [f] for f in owners}}
    text = ["| images | map | boxes | pixel AUROC | pointing game | in the top 20 % | AUROC less that of the prior |"]
    text.append("|---|---|---:|---:|---:|---:|---:|")
    for name, findings in sets.items():
        patients = [one for f in findings for one in owners[f]]
        for stage, values in scored.items():
            joined = {key: np.concatenate([values[f][key] for f in findings]) for key in ("auroc", "pointing", "top")}
            cells = [interval(one, patients) for one in joined.values()]
            base = np.concatenate([scored[baseline][f]["auroc"] for f in findings])
            gain = "" if stage == baseline else interval(joined["auroc"] - base, patients, "+.3f")
            text.append(f"| {name} | {stage} | {len(patients)} | {' | '.join(cells)} | {gain} |")
    for stage, values in scored.items():
        groups = [(values[f]["auroc"], owners[f]) for f in others]
        value, seen = macro_interval(groups, DRAWS, numpy_generator("localise_nih", stage))
        text.append(
            f"| mean of {len(others)} findings, without {SOURCE} | {stage} | | {value:.3f} [{seen.low:.3f}, "
            f"{seen.high:.3f}] | | | |"
        )
    return text


def interval(values: np.ndarray, patients: Sequence[str], form: str = ".3f") -> str:
    """Mean and 95 % interval over patients; no interval for fewer than six."""
    value, seen = mean_interval(values, patients, DRAWS, numpy_generator("localise_nih"))
    if len(set(patients)) < 6:
        return f"{value:{form}}"
    return f"{value:{form}} [{seen.low:{form}}, {seen.high:{form}}]"


def main() -> None:
    """Train, score, and write the table."""
    given, began = options(), time.process_time()
    torch.set_num_threads(1)
    manifest, boxes = collection(given)
    regions, owner = Regions.of(manifest), manifest.rows["patient_id"].astype(str)
    uids = sorted({uid for finding in regions.findings for uid in regions.known(finding)})
    names = list(map(str, owner.index))
    every = dict(zip(names, images(manifest, given.size, names).float() / 255, strict=True))
    boxed = Boxed(regions, {uid: every[uid] for uid in uids}, {uid: number(owner[uid]) for uid in uids})
    image = boxed.by_uid(ensemble(networks(manifest, {owner[uid] for uid in uids}, given)))
    square = usual_place(atlas(boxes, FINDINGS), regions, owner.to_dict())
    poses = registered(torch.stack(list(every.values())))
    prior = replace(square, poses=dict(zip(names, poses, strict=True)))
    name = f"{given.networks} image classifiers"
    alone = "prior alone, registered"
    stages: dict[str, Localise] = {name: image, "prior alone, in the square image": square, alone: prior}
    stages[f"{name} x registered prior"] = AtUsualPlace(image, prior)
    text = lines(boxed, {key: score(boxed, stage) for key, stage in stages.items()}, alone)
    counts = f"{len(uids)} images of {len(set(boxed.patients.values()))} patients"
    spent = f"{time.process_time() - began:.0f} CPU seconds, less what was already trained"
    text += ["", f"{counts}; {spent}. Intervals: 95 %, over patients; none for fewer than six."]
    table("localise_nih", text)


if __name__ == "__main__":
    main()
