"""Rows and a source small enough that a classifier is trained on them in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.checks.folds import CrossFitClassifiers, Verifier
from medlt.classify.sets import TrainingSet
from medlt.evaluation.arms import ExperimentRows
from medlt.evaluation.sources import SourceImages, Verifiers

FINDINGS = ("Mass", "Hernia")
PARENTS = {"s0": "r3", "s1": "r0", "s2": "r3", "s3": "r1"}
FOLD_OF = {"r0": 0, "r1": 1, "r2": 0, "r3": 1, "r4": 0, "r5": 1}
Rows = Callable[[], ExperimentRows]
MakeSource = Callable[..., SourceImages]


def grey(levels: Sequence[int], size: int = 32) -> Tensor:
    """uint8 [n,1,size,size], each image of one grey."""
    return torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, size, size).clone()


def drawn(prefix: str, n: int, seed: int) -> TrainingSet:
    """n noisy images; those with Hernia are darker, those with Mass have a bright corner."""
    draw = np.random.default_rng(seed)
    labels = (draw.random((n, 2)) < [0.5, 0.3]).astype(np.float32)
    labels[0] = 1
    images = draw.integers(60, 200, (n, 1, 32, 32)) - (60 * labels[:, 1]).astype(int)[:, None, None, None]
    images[labels[:, 0] == 1, :, :8, :8] = 255
    pixels = torch.from_numpy(images.clip(0, 255).astype(np.uint8))
    return TrainingSet(pixels, labels, np.ones(n, np.float32), tuple(f"{prefix}{i}" for i in range(n)))


def verifier(k: int) -> Verifier:
    """Give every image the probability (k + 1) / 10 of Mass, and its grey / 255 of Hernia."""

    def probabilities(images: Tensor) -> Tensor:
        level = images.float().mean((1, 2, 3)) / 255
        return torch.stack([torch.full_like(level, (k + 1) / 10), level], 1)

    return probabilities


@pytest.fixture
def rows() -> ExperimentRows:
    """Train rows r0..r5 of grey 10 .. 60: two with Mass, three with Hernia; 30 validation and 40 test rows."""
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 1], [0, 0], [0, 0]], dtype=np.float32)
    train = TrainingSet(
        grey([10, 20, 30, 40, 50, 60]), labels, np.ones(6, np.float32), tuple(f"r{n}" for n in range(6))
    )
    about = pd.DataFrame({"view": ["PA", "AP"] * 20, "sex": ["F"] * 20 + ["M"] * 20})
    groups = {"head": ("Mass",), "medium": (), "tail": ("Hernia",)}
    patients = [f"p{n // 2}" for n in range(40)]
    return ExperimentRows(train, drawn("v", 30, 1), drawn("t", 40, 2), FINDINGS, groups, patients, about)


@pytest.fixture
def source(rows: ExperimentRows) -> MakeSource:
    """Images s0..s3 of grey 110, 120, 130, 140 made for Hernia, of which s1 stands first in slots."""

    def make(**changed: Any) -> SourceImages:
        index = pd.Index(list(PARENTS), name="uid")
        labels = pd.DataFrame({"Mass": [0.2, 0.6, np.nan, 0], "Hernia": 1.0}, index=index)
        known = pd.DataFrame(rows.train.labels, index=list(rows.train.uids), columns=list(FINDINGS))
        fold = pd.Series(FOLD_OF)
        kept = pd.DataFrame({"finding": "Hernia", "slot": [1, 0, 2, 3], "verifier": [0.9, 0.8, 0.2, 0.1]}, index=index)
        kept = kept.assign(tail_parent=list(PARENTS.values()), fold=fold.loc[list(PARENTS.values())].to_numpy())
        held = pd.DataFrame([[0.5, 0.01 * n] for n in range(6)], index=fold.index, columns=list(FINDINGS))
        level = dict(zip(PARENTS, (110, 120, 130, 140), strict=True))
        given: dict[str, Any] = {
            "name": "x",
            "kept": kept,
            "labels": labels,
            "images": lambda size, uids: grey([level[uid] for uid in uids], size),
            "verifiers": Verifiers(CrossFitClassifiers((verifier(0), verifier(1)), fold, held), known, 32),
            "checks": pd.DataFrame({"check": ["label"] * 5, "uid": list("abcde"), "passed": [True] * 4 + [False]}),
            "planned": 5,
        }
        return SourceImages(**given | changed)

    return make
