"""A parent that trains arms in two workers for longer than any test, as a script: STORE is its argument."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medlt.classify.sets import TrainingSet
from medlt.evaluation.arms import REAL, Arm, ExperimentRows
from medlt.evaluation.engine import train_arms
from medlt.store import Store
from medlt.training.runtime import Runtime


def rows(n: int = 64) -> ExperimentRows:
    """Three splits of noise, 64 px."""
    draw = np.random.default_rng(0)
    parts = []
    for name in ("train", "val", "test"):
        images = torch.from_numpy(draw.integers(0, 255, (n, 1, 64, 64), dtype=np.uint8))
        labels = (draw.random((n, 2)) < 0.5).astype(np.float32)
        parts.append(TrainingSet(images, labels, np.ones(n, np.float32), tuple(f"{name}{i}" for i in range(n))))
    patients = [str(i) for i in range(n)]
    return ExperimentRows(*parts, ("a", "b"), {"tail": ("b",)}, patients, pd.DataFrame(index=range(n)))


if __name__ == "__main__":
    settings = {"steps": 100_000, "batch_size": 64, "evaluate_every": 100_000}
    arms = [Arm(REAL, "real", settings), Arm("plain", "reweighted", settings | {"loss": "plain"}, control=REAL)]
    runtime = Runtime("cpu", "fp32", 1, 0)
    train_arms(rows(), arms, [0], runtime=runtime, store=Store(Path(sys.argv[1])), workers=2)
