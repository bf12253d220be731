"""Whether the usual place of a finding is better in the coordinates of the mean radiograph than in those of the image.

    MEDLT_DATA=/data python benchmarks/localise_register.py --patients 600 --seed 9173

Scores the usual place alone, without a map, each image by the cases of other patients (`medlt.localise.prior`):

    synthetic      a fresh cohort with its masks, as drawn, and with other positions: a shift of up to 10 % of the side
                   in both directions and a scale of up to 15 %, evenly drawn; the patient is drawn again, so nothing is
                   cut or padded. "landmarks" are the edges of the lungs in brightness profiles; "lungs as drawn" is
                   what a perfect segmentation would give: the middle 94 % of the lungs' area in both directions
    ChestX-ray14   images with boxes of $MEDLT_DATA/nih14, as they are, and moved likewise with a repeated border. Of
                   the 984 boxes in $MEDLT_DATA/labels_only, those of other images have no pixels and stay in place
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import table
from localise_nih import FINDINGS, GRID, collection, usual_place
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from medlt.data.boxes import atlas
from medlt.data.loaders import images
from medlt.data.phantom import cohort
from medlt.data.regions import Regions, mask_cover
from medlt.localise.prior import PositionPrior
from medlt.localise.register import MOST, MeanRadiograph
from medlt.metrics.localisation import macro_interval, mean_interval, measures
from medlt.rng import numpy_generator

DRAWS, SIZE, SHIFT, SCALE = 2000, 96, 0.1, 0.15
render = importlib.import_module("medlt.data.phantom.render")
Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Drawn:
    """Masks of drawn patients: finding -> uid -> bool [H,W]."""

    of: Mapping[str, Mapping[str, np.ndarray]]

    def known(self, finding: str) -> tuple[str, ...]:
        """The uids with a mask of the finding."""
        return tuple(self.of[finding])

    def masks(self, uids: Sequence[str], finding: str, size: tuple[int, int]) -> Tensor:
        """The covered share of each cell [B,h,w]."""
        return torch.stack([torch.from_numpy(mask_cover(self.of[finding][uid]).shares(size)) for uid in uids])


def moved_grid(size: int, field: float, turn: float, offset: tuple[float, float]) -> Any:
    """The detector plane at another position and scale, drawn from the pose of the image."""
    grow, right, down = numpy_generator("position", field, turn, *offset).uniform(-1, 1, 3)
    shifted = (offset[0] + SHIFT * field * right, offset[1] + SHIFT * field * down)
    return GRID_OF(size, field * (1 + SCALE * grow), turn, shifted)


GRID_OF = render.grid


def drawn(given: argparse.Namespace, moved: bool) -> tuple[Tensor, Tensor, Drawn, dict[str, str]]:
    """Images [N,1,S,S], lungs [N,S,S], masks, and uid -> patient, in the order of the images."""
    rows = cohort(given.patients, given.seed, 10.0, evaluation_imbalance=10.0).to_dict("records")
    with mock.patch.object(render, "grid", moved_grid if moved else GRID_OF):
        films = {str(row["uid"]): render.film(row, given.seed, SIZE) for row in rows}
    of: dict[str, dict[str, np.ndarray]] = {}
    for uid, film in films.items():
        for finding, mask in film.masks.items():
            of.setdefault(finding, {})[uid] = mask
    pixels, lungs = (np.stack(one) for one in zip(*((f.image, f.anatomy["lung"]) for f in films.values()), strict=True))
    patients = {str(row["uid"]): str(row["patient_id"]) for row in rows}
    return torch.from_numpy(pixels)[:, None], torch.from_numpy(lungs), Drawn(of), patients


def from_edges(edges: Tensor) -> Tensor:
    """Poses [N,4] of lungs with these left, right, upper and lower edges [N,4] in [-1,1]."""
    scale, middle = (edges[:, 1::2] - edges[:, ::2]).log(), (edges[:, 1::2] + edges[:, ::2]) / 2
    scale = scale - scale.median(0).values
    return torch.cat([scale, middle - scale.exp() * middle.median(0).values], 1).float()


def lung_edges(lungs: Tensor) -> Tensor:
    """The edges of the middle 94 % of masks [N,S,S]."""
    places = (np.arange(lungs.shape[-1]) + 0.5) / lungs.shape[-1] * 2 - 1
    sums = [np.cumsum(lungs.float().sum(axis).numpy(), 1) for axis in (1, 2)]
    ends = [[np.interp([0.03, 0.97], one / one[-1], places) for one in rows] for rows in sums]
    return torch.from_numpy(np.concatenate([np.array(one) for one in ends], 1))


def profile_edges(pixels: Tensor) -> Tensor:
    """The steepest edges of the lungs in brightness profiles of images [N,1,S,S], on 64 px."""
    edges, places = [], (np.arange(64) + 0.5) / 32 - 1
    for one in F.interpolate(pixels, (64, 64), mode="area")[:, 0].numpy():
        soft = gaussian_filter(one, 1.5)
        across = soft[16:44].mean(0)
        middle = 20 + int(across[20:44].argmax())
        left, right = int(across[:middle].argmin()), middle + int(across[middle:].argmin())
        down, slope = soft[:, [left, right]].mean(1), np.gradient(across)
        deep, fall = 8 + int(down[8:48].argmin()), np.gradient(down)
        ends = (slope[: left + 1].argmin(), right + slope[right:].argmax())
        ends += (fall[: deep + 1].argmin(), deep + fall[deep:].argmax())
        edges.append(places[list(ends)])
    lungs = torch.from_numpy(np.array(edges))
    lungs[:, 1::2] = torch.maximum(lungs[:, 1::2], lungs[:, ::2] + 0.3)
    return lungs


def registered(pixels: Tensor) -> tuple[Tensor, str]:
    """Poses by the mean radiograph of evenly chosen images, and what they cost."""
    began = time.process_time()
    mean = MeanRadiograph.of(pixels[np.linspace(0, len(pixels) - 1, min(MOST, len(pixels))).astype(int)])
    built = time.process_time()
    poses = mean.poses(pixels)
    each, failed = (time.process_time() - built) / len(pixels), int((poses == 0).all(1).sum())
    return poses, f"mean radiograph {built - began:.1f} CPU s, {1000 * each:.1f} ms an image, {failed} fits failed"


def score(prior: PositionPrior, truth: Any, findings: Sequence[str]) -> Scores:
    """Finding -> measure -> values, and the patients."""
    values: dict[str, dict[str, Any]] = {}
    for finding in findings:
        uids = list(truth.known(finding))
        cover = truth.masks(uids, finding, GRID).numpy()
        values[finding] = {**measures(prior(uids, finding).numpy(), cover), "of": [prior.patients[u] for u in uids]}
    return values


def line(where: str, name: str, own: Scores, base: Scores, pooled: bool) -> str:
    """One line: three measures, and two paired differences from the coordinates of the image."""
    cells = [where, name, str(sum(len(one["of"]) for one in own.values()))]
    for less, keys in ((False, ("auroc", "top", "pointing")), (True, ("auroc", "top"))):
        for key in keys:
            groups = [(own[f][key] - base[f][key] if less else own[f][key], own[f]["of"]) for f in own]
            rng = numpy_generator("localise_register", key)
            joined = np.concatenate([one for one, _ in groups]), [p for _, of in groups for p in of]
            value, seen = mean_interval(*joined, DRAWS, rng) if pooled else macro_interval(groups, DRAWS, rng)
            form = "+.3f" if less else ".3f"
            cells.append("" if less and own is base else f"{value:{form}} [{seen.low:{form}}, {seen.high:{form}}]")
    return "| " + " | ".join(cells) + " |"


def compare(where: str, prior: PositionPrior, truth: Any, poses: Mapping[str, Any], pooled: bool) -> list[str]:
    """One line for each coordinates, those of the image first."""
    findings = sorted(truth.of) if isinstance(truth, Drawn) else list(truth.findings)
    base = score(prior, truth, findings)
    scored = {name: score(replace(prior, poses=one), truth, findings) for name, one in poses.items()}
    lines = [line(where, name, one, base, pooled) for name, one in {"image": base, **scored}.items()]
    gains = {f: np.nanmean(scored["registered"][f]["auroc"] - base[f]["auroc"]) for f in findings}
    print(where, ", ".join(f"{f} {len(base[f]['of'])}: {gain:+.3f}" for f, gain in gains.items()))
    return lines


def synthetic(given: argparse.Namespace, moved: bool) -> tuple[list[str], str]:
    """The lines of a drawn cohort."""
    pixels, lungs, truth, patients = drawn(given, moved)
    poses, cost = registered(pixels)
    every = {
        "registered": poses,
        "landmarks": from_edges(profile_edges(pixels)),
        "lungs as drawn": from_edges(lung_edges(lungs)),
    }
    by_uid = {name: dict(zip(patients, one, strict=True)) for name, one in every.items()}
    where = f"synthetic, {'moved' if moved else 'as drawn'}"
    prior = PositionPrior(truth, frozenset(patients), patients, GRID)  # type: ignore[arg-type]
    return compare(where, prior, truth, by_uid, pooled=False), f"{where}: {len(pixels)} images, {cost}."


def real(given: argparse.Namespace, moved: bool) -> tuple[list[str], str]:
    """The lines of ChestX-ray14: cases are all boxes, images those with pixels."""
    manifest, file = collection(given)
    owner, own, table_ = manifest.rows["patient_id"].astype(str), Regions.of(manifest), atlas(file, FINDINGS)
    pixels, names = images(manifest, 64, list(manifest.rows.index)).float() / 255, list(map(str, owner.index))
    truth, start = own, torch.zeros(len(pixels), 4)
    if moved:
        rng = numpy_generator("localise_register", "position")
        start = torch.from_numpy(rng.uniform(-1, 1, (len(pixels), 3))).float() * torch.tensor([SCALE, *[2 * SHIFT] * 2])
        grow, shift = 1 + start[:, :1], start[:, 1:]
        matrices = torch.cat([torch.eye(2) * grow[:, :, None], shift[:, :, None]], 2)
        pixels = F.grid_sample(pixels, F.affine_grid(matrices, list(pixels.shape), align_corners=False),
            padding_mode="border", align_corners=False)  # fmt: skip
        change = dict(zip(names, zip(grow.double().numpy(), shift.double().numpy(), strict=True), strict=True))
        truth = Regions(boxes={f: {u: _moved(c, *change[u]) for u, c in of.items()} for f, of in own.boxes.items()})
    poses, cost = registered(pixels)
    where = f"ChestX-ray14, {'moved' if moved else 'as they are'}"
    prior = usual_place(table_, truth, owner.to_dict())
    by_uid = {"registered": dict(zip(names, poses, strict=True))}
    return compare(where, prior, truth, by_uid, pooled=True), f"{where}: {len(pixels)} images, {cost}."


def _moved(corners: np.ndarray, grow: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Corners [n,4] as shares of the square, where they are in the moved image."""
    return np.clip((corners * 2 - 1 - np.tile(shift, 2)) / grow / 2 + 0.5, 0, 1)


def main() -> None:
    """Score, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=600)
    parser.add_argument("--seed", type=int, default=9173)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDLT_DATA", "data")))
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = [make(given, moved) for make in (synthetic, real) for moved in (False, True)]
    head = (
        "| images | coordinates | lesions | pixel AUROC | in the top 20 % | pointing game | AUROC less that of image | "
    )
    head += "top 20 % less that of image |"
    lines = [head, "|---|---|" + "---:|" * 6, *(one for part, _ in parts for one in part), "", *(t for _, t in parts)]
    lines += ["", "Synthetic: mean over findings; ChestX-ray14: mean over boxes. Intervals: 95 %, over patients."]
    table("localise_register", lines)


if __name__ == "__main__":
    main()
