"""The arms of the comparison: one classifier, one number of steps, one schedule; only the added rows differ.

The control is the one that no radiograph study has beaten: each synthetic image replaced by the real tail image it was
made from, or whose label vector it was told, with that image's real labels. Same count, same share of every batch, same
loss weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medlt.classify.train import TrainingSet

Fit = Callable[[TrainingSet | None, int, str], np.ndarray]
"""(added rows, seed, name of the arm) -> test probabilities [N,K]."""

CONTROL = "duplicated"


@dataclass(frozen=True)
class Arms:
    """Test probabilities of every arm: scores[arm] is [S,N,K], over the same seeds, rows and findings."""

    scores: Mapping[str, np.ndarray]
    truth: np.ndarray
    patients: Sequence[str]
    findings: tuple[str, ...]


def duplicated(kept: pd.DataFrame, real: TrainingSet, weight: float) -> TrainingSet:
    """The count-matched control: for every kept synthetic row its real tail image and labels, again.

    kept: plan rows of the synthetic images, with `parent_a`, or with `like` where a method begins with noise. Raises
    KeyError for one that is no train row.
    """
    at = {uid: i for i, uid in enumerate(real.uids)}
    source = kept["parent_a" if "parent_a" in kept else "like"]
    rows = np.array([at[uid] for uid in source], dtype=np.int64)
    uids = tuple(f"{real.uids[i]}-copy-{n}" for n, i in enumerate(rows))
    weights = np.full(len(rows), weight, dtype=np.float32)
    return TrainingSet(real.images[rows], real.labels[rows], weights, uids)


def train(arms: Mapping[str, TrainingSet | None], seeds: Sequence[int], fit: Fit) -> dict[str, np.ndarray]:
    """Every arm with every seed: {arm: [S,N,K]}. Seed s of one arm starts from the weights of seed s of another."""
    return {name: np.stack([fit(added, seed, name) for seed in seeds]) for name, added in arms.items()}
