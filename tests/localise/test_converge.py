"""The classifier on a frozen code: encoder and decoder keep their bytes, the classifier learns, the store knows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medlt.localise.converge import converged
from medlt.rng import numpy_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.store import Store
from medlt.training.runtime import Runtime

RUNTIME = Runtime("cpu", "fp32", 1, 3)


def toy(n: int = 48) -> tuple[torch.Tensor, np.ndarray]:
    """Latents [n,2,8,8]; the first finding raises the first channel in one corner."""
    rng = numpy_generator("converge", n)
    y = (rng.random((n, 2)) < 0.5).astype(np.float32)
    z = rng.normal(size=(n, 2, 8, 8))
    z[:, 0, :4, :4] += 2.0 * y[:, 0, None, None]
    return torch.from_numpy(z).float(), y


def test_only_the_classifier_changes_and_it_learns_the_finding(tmp_path: Path) -> None:
    z, y = toy()
    coder = SimplicialCoder(2, 2, groups=2, vocabulary=4, temperature=0.3, width=8, seed=1).eval()
    before = coder.digest

    def train(**changed: int) -> SimplicialCoder:
        return converged(coder, z, y, contents="toy", runtime=RUNTIME, store=Store(tmp_path), steps=60, **changed)

    after, again = train(), train()
    assert coder.digest == before
    assert after.digest == again.digest != before
    assert train(batch_size=8).digest != after.digest
    for name, value in coder.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(value, after.state_dict()[name]), name
    with torch.no_grad():
        scores = after.classify(after.code(z))[:, 0]
    positive, negative = scores[y[:, 0] == 1], scores[y[:, 0] == 0]
    assert (positive[:, None] > negative).double().mean() > 0.9
    assert not after.training
