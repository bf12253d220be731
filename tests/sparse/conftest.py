"""A planted collection: each finding is a blob in a corner of its own, so where a map must look is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.rng import numpy_generator
from medlt.sparse.iterated import Iterated, iterate
from medlt.store import Store
from medlt.training.runtime import Runtime

CORNERS = ((slice(0, 3), slice(0, 3)), (slice(5, 8), slice(5, 8)))


def planted(n: int, *key: object) -> tuple[Tensor, np.ndarray]:
    """Latents [n,2,8,8] and labels [n,2]: finding c raises both channels in corner c."""
    rng = numpy_generator("planted", *key)
    z = rng.normal(size=(n, 2, 8, 8)) * 0.5
    y = (rng.random((n, 2)) < 0.4).astype(np.float32)
    for c, (rows, columns) in enumerate(CORNERS):
        z[:, :, rows, columns] += 2.0 * y[:, c, None, None, None]
    return torch.from_numpy(z).float(), y


SMALL: dict[str, Any] = {
    "groups": 2,
    "vocabulary": 4,
    "temperature": 0.1,
    "generations": 2,
    "imitation_epochs": 6,
    "adaptation_epochs": 1,
    "interaction_epochs": 8,
    "patience": 8,
    "width": 8,
    "batch_size": 16,
    "learning_rate": 2e-2,
}


@pytest.fixture(scope="session")
def toy_latents() -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    return *planted(192, "train"), *planted(64, "val")


@pytest.fixture(scope="session")
def learnt(
    toy_latents: tuple[Tensor, np.ndarray, Tensor, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Iterated, Path]:
    """Two generations on the planted collection, and the folder of their store."""
    folder = tmp_path_factory.mktemp("learnt")
    names = {"contents": "planted train", "val_contents": "planted val"}
    runtime = Runtime("cpu", "fp32", None, 3)
    return iterate(*toy_latents, runtime=runtime, store=Store(folder), **names, **SMALL), folder
