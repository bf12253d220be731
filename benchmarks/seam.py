"""How well each seam puts a real lesion on another patient, where what the lesion adds to a radiograph is known.

    python benchmarks/seam.py [--size 128] [--patients 300] [--seed 18]

The phantom draws each tail image with its finding and without it. The difference is what the lesion adds; on the head
image it is the ideal. Lesions stay in place here, so nothing but the seam differs. Head images are matched as in
`medlt.synthesis.heads`. The mask is that of the lesion, or its cells of a grid of 16 x 16, as a map would give at best.

| column | meaning |
|---|---|
| error | root mean square of pasted less ideal image over that of what the lesion adds, in a square around the mask |
| contrast | what the paste adds to the contrast of the mask (`medlt.checks.codec.contrast`), as a share of the ideal |
| off by | root mean square of that error of the contrast, image by image, over that of the ideal contrast |
| AUROC | of pasted against ideal images by the mean absolute Laplacian within 3 px of the edge of the mask |
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from common import table
from scipy.ndimage import binary_dilation, distance_transform_edt, laplace
from sklearn.metrics import roc_auc_score

from medlt.checks.codec import contrast
from medlt.data.phantom.cohort import cohort
from medlt.data.phantom.render import film
from medlt.data.squares import square
from medlt.rng import numpy_generator
from medlt.synthesis.composite import composite, soft_mask

FINDINGS = ("Mass", "Nodule", "Pneumothorax", "Pneumoperitoneum")
SEAMS = (("feather", 0.0), ("feather", 0.03), ("feather", 0.06), ("poisson", 0.0))
CASES, HEADS, EDGE, AROUND, GRID = 40, 60, 3, 0.12, 16


class Case(NamedTuple):
    """A tail image, what its lesion adds, its mask, and a head image: all [S,S]."""

    tail: np.ndarray
    added: np.ndarray
    mask: np.ndarray
    head: np.ndarray


def drawn(row: dict[str, Any], seed: int, size: int, without: str = "") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the square image of a row, and the square masks of its findings."""
    made = film({**row, without: 0.0} if without else row, seed, size)
    masks = {name: square(mask.astype(np.float32), size) > 0.5 for name, mask in made.masks.items()}
    return square(made.image, size), masks


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return the means of a grid of 16 x 16 cells."""
    return image.reshape(GRID, len(image) // GRID, GRID, -1).mean((1, 3))


def cases(rows: pd.DataFrame, finding: str, size: int, seed: int) -> list[Case]:
    """Return the cases of a finding, at most one a patient."""
    plain = rows[(rows[list(FINDINGS)] == 0).all(axis=1)]
    heads = {view: [(row["patient_id"], drawn(row, seed, size)[0]) for row in some.head(HEADS).to_dict("records")]
             for view, some in plain.groupby("view")}  # fmt: skip
    rng, made = numpy_generator(seed, "heads", finding), []
    for row in rows[rows[finding] == 1].groupby("patient_id").head(1).head(CASES).to_dict("records"):
        tail, masks = drawn(row, seed, size)
        others = [head for patient, head in heads[row["view"]] if patient != row["patient_id"]]
        far = np.array([np.linalg.norm(thumbnail(head) - thumbnail(tail)) for head in others])
        head = others[np.argsort(far)[int(rng.integers(len(others) // 2))]]
        if masks[finding].any():
            made.append(Case(tail, tail - drawn(row, seed, size, finding)[0], masks[finding], head))
    return made


def in_cells(mask: np.ndarray) -> np.ndarray:
    """Return the cells of the grid that a mask touches."""
    side = len(mask) // GRID
    return np.kron(thumbnail(mask.astype(float)) > 0, np.ones((side, side), bool))


def seam_of(image: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean absolute Laplacian near the edge of the mask."""
    near = np.abs(distance_transform_edt(~mask) - distance_transform_edt(mask)) <= EDGE
    return float(np.abs(laplace(image))[near].mean())


def measure(found: list[Case], seam: str, feather: float, cells: bool) -> tuple[float, float, float, float]:
    """Return the columns of one seam."""
    errors, changes, edges = [], [], []
    for tail, added, mask, head in found:
        taken = in_cells(mask) if cells else mask
        soft = soft_mask(torch.from_numpy(taken)[None], len(mask), feather * len(mask))
        pasted = composite(*(torch.from_numpy(one).float()[None, None] for one in (head, tail)), soft, seam)[0, 0]
        three = np.stack([pasted.numpy(), np.clip(head + added, 0, 1), head]).astype(np.float32)
        around = binary_dilation(mask, iterations=round(AROUND * len(mask)))
        errors.append(float(np.sqrt(((three[0] - three[1])[around] ** 2).mean() / (added[around] ** 2).mean())))
        shown = contrast(torch.from_numpy(three)[:, None], torch.from_numpy(mask).float().expand(3, -1, -1))
        changes.append(shown[:2] - shown[2])
        edges.append([seam_of(one, taken) for one in three[:2]])
    made, ideal = np.array(changes)[np.isfinite(changes).all(axis=1)].T
    kept, off = float((made * np.sign(ideal)).sum() / np.abs(ideal).sum()), float(np.hypot.reduce(made - ideal))
    auroc = roc_auc_score(np.repeat([1, 0], len(edges)), np.array(edges).T.ravel())
    return float(np.median(errors)), kept, off / float(np.hypot.reduce(ideal)), float(auroc)


def main() -> None:
    """Measure every seam on every finding."""
    read = argparse.ArgumentParser()
    for name, value in (("size", 128), ("patients", 300), ("seed", 18)):
        read.add_argument(f"--{name}", type=int, default=value)
    args = read.parse_args()
    rows = cohort(args.patients, args.seed, 2.0)
    columns = "finding | cases | mask | seam | feather | error | contrast | off by | AUROC".split(" | ")
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---|---|---:|---:|---:|---:|---:|"]
    for name in FINDINGS:
        found = cases(rows, name, args.size, args.seed)
        for cells in (False, True):
            for seam, feather in SEAMS:
                values = " | ".join(f"{value:.2f}" for value in measure(found, seam, feather, cells))
                kind = "cells" if cells else "lesion"
                lines.append(f"| {name} | {len(found)} | {kind} | {seam} | {feather:g} | {values} |")
    table(f"seam_{args.size}", lines)


if __name__ == "__main__":
    main()
