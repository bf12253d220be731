"""What is left of the votes of patients at several epsilon, by how many patients a finding has.

    python benchmarks/private_evolution.py

900 drawn patients (the train split of 1,500) vote for images of each finding. To measure the votes and not a denoiser,
the images are drawn radiographs of other people: of each 16, eight are right. Once the wrong eight are radiographs
without any finding, once they are no radiographs at all (smooth noise of the mean and the deviation of a radiograph).
The noise is that of four votes. Reported per finding: the votes, their mean per right image over the standard deviation
of the noise, and the share of the draws that go to right images, which is 0.5 without any information.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import torch
from common import table
from torch import Tensor
from torch.nn.functional import interpolate

from medlt.data.phantom import FINDINGS, cohort, render
from medlt.privacy import votes
from medlt.privacy.accounting import Planned, calibrate
from medlt.rng import numpy_generator, torch_generator

PATIENTS, IMBALANCE, SIZE, SIDE = 1500, 45.0, 64, 32
SEED, OTHERS = 0, 1
EACH = 8
"""Right images of a population, and wrong ones."""
GENERATIONS, DELTA, THRESHOLD = 4, 1e-6, 2.0
EPSILONS = (1.0, 2.0, 4.0, 8.0)
DRAWS = 2000


def thumbnails(rows: pd.DataFrame, seed: int) -> np.ndarray:
    """Return the small images of these rows, uint8 [N,D]."""
    images = [torch.from_numpy(render(row, seed, SIZE)[0]) for row in rows.to_dict("records")]
    return votes.thumbnails(torch.stack(images)[:, None], SIDE).numpy()


def failures(like: np.ndarray, name: str) -> np.ndarray:
    """Return smooth noise with the mean and the deviation of small images uint8 [N,D]."""
    coarse = torch.rand(len(like), 1, 8, 8, generator=torch_generator("failures", name))
    smooth: Tensor = interpolate(coarse, (SIDE, SIDE), mode="bicubic").flatten(1)
    unit = (smooth - smooth.mean(1, keepdim=True)) / smooth.std(1, keepdim=True)
    wanted = torch.from_numpy(like).float()
    made = unit * wanted.std(1, keepdim=True) + wanted.mean(1, keepdim=True)
    return made.clamp(0, 255).round().to(torch.uint8).numpy()


def populations(findings: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the two kinds of populations, uint8 [F,16,D]: the right images first."""
    others = cohort(PATIENTS, OTHERS, imbalance=1.0, most=0.3)
    healthy = others[others["No_Finding"] == 1]
    made: dict[str, list[np.ndarray]] = {"no finding": [], "no radiograph": []}
    for name in findings:
        right = thumbnails(others[others[name] == 1].head(EACH), OTHERS)
        first = findings.index(name) * EACH
        made["no finding"].append(np.concatenate([right, thumbnails(healthy.iloc[first : first + EACH], OTHERS)]))
        made["no radiograph"].append(np.concatenate([right, failures(right, name)]))
    return {kind: np.stack(several) for kind, several in made.items()}


def share_of_right(counted: np.ndarray, sigma: float, key: str) -> np.ndarray:
    """Return the mean share of the draws that go to right images, [F], over many drawings of the noise."""
    rng, total = numpy_generator("votes", key, sigma), np.zeros(len(counted))
    for _ in range(DRAWS if sigma else 1):
        noisy = counted + sigma * rng.standard_normal(counted.shape)
        total += votes.shares(torch.from_numpy(noisy), THRESHOLD * sigma)[:, :EACH].sum(1)
    return total / (DRAWS if sigma else 1)


def main() -> None:
    """Count the votes once, add noise of each epsilon, and write the tables."""
    rows = cohort(PATIENTS, SEED, imbalance=IMBALANCE)
    rows = rows[rows["split"] == "train"]
    findings = tuple(sorted(FINDINGS, key=lambda name: -rows.loc[rows[name] == 1, "patient_id"].nunique()))
    owners, has = list(rows["patient_id"]), (rows[list(findings)] == 1).to_numpy()
    seen = thumbnails(rows, SEED)
    sigmas = {epsilon: calibrate([Planned(1.0, GENERATIONS)], epsilon, DELTA) for epsilon in EPSILONS}
    lines = [f"{len(set(owners))} patients, {len(rows)} images. Noise, in votes: "
             + ", ".join(f"{sigma:.2f} at epsilon {epsilon:g}" for epsilon, sigma in sigmas.items()) + "."]  # fmt: skip
    for kind, made in populations(findings).items():
        counted = votes.count_votes(votes.nearest(seen, made), has, owners, made.shape[1])
        exact = share_of_right(counted, 0.0, kind)
        drawn = {epsilon: share_of_right(counted, sigma, kind) for epsilon, sigma in sigmas.items()}
        lines += ["", f"Wrong images: {kind}.", "",
                  "| finding | patients | votes | signal to noise, epsilon " + ", ".join(f"{e:g}" for e in EPSILONS)
                  + " | right without noise | " + " | ".join(f"epsilon {e:g}" for e in EPSILONS) + " |",
                  "|---|---|---|---|---|" + "---|" * len(EPSILONS)]  # fmt: skip
        for f, name in enumerate(findings):
            people = rows.loc[rows[name] == 1, "patient_id"].nunique()
            signal = counted[f, :EACH].mean()
            ratios = ", ".join(f"{signal / sigma:.2f}" for sigma in sigmas.values())
            shares = " | ".join(f"{drawn[epsilon][f]:.2f}" for epsilon in EPSILONS)
            votes_in_all = counted[f].sum()
            lines.append(f"| {name} | {people} | {votes_in_all:.1f} | {ratios} | {exact[f]:.2f} | {shares} |")
    table("private_evolution", lines)


if __name__ == "__main__":
    sys.exit(main())
