"""Small trainings of every kind, for one process or for several: `several.py OUT STEPS CASE...`.

The first process writes OUT/CASE/losses.json and weights.safetensors. Each row has NaN labels, whose number differs
between the halves of a batch, and each network with batch norms has them in training.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from medlt import processes
from medlt.classify.sets import TrainingSet
from medlt.classify.train import fit_classifier
from medlt.diffusion.emphasis import PLAIN, Emphasis
from medlt.diffusion.families import load_label_network
from medlt.diffusion.train import train_denoiser
from medlt.diffusion.train_codec import train_codec
from medlt.files import write_json, write_tensors
from medlt.privacy.dpsgd.training import PrivacySettings, fit_private
from medlt.rng import noise_like
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.phases import TrainingSetup, adapt, imitate, interact
from medlt.store import Store
from medlt.testing import Discs
from medlt.training.checkpoint import State
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import GradSampleMode

CPU = Runtime("cpu", "fp32", 1, 5)
Weights = dict[str, Tensor]


def labels(rows: int, seed: int) -> np.ndarray:
    """Labels [rows,2] of 0, 1 and NaN."""
    drawn = np.random.default_rng(seed)
    y = (drawn.random((rows, 2)) < 0.4).astype("float32")
    y[drawn.random((rows, 2)) < 0.3] = np.nan
    return y


def codec(out: Path, steps: int, emphasis: Emphasis = PLAIN) -> Weights:
    trained = train_codec(Discs(16, 16), contents="discs", runtime=CPU, store=Store(out), width=8, levels=2,
                          steps=steps, batch_size=4, checkpoint_every=2, emphasis=emphasis)  # fmt: skip
    return trained.network.state_dict()


class Maps:
    """Frozen maps of a stage with random weights."""

    digest = "maps"
    kernel = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(2))

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.conv2d(images, self.kernel).relu()]


def codec_emphasis(out: Path, steps: int) -> Weights:
    lesions = torch.randint(0, 256, (16, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return codec(out, steps, Emphasis(0.5, 2.0, lesions, 0.1, Maps()))


def denoiser(out: Path, steps: int) -> Weights:
    def latents(uids: Sequence[str]) -> Tensor:
        return noise_like([int(uid[1:]) for uid in uids], (2, 8, 8))

    def build(folder: Path) -> None:
        train_denoiser(latents, [f"u{i}" for i in range(24)], labels(24, 1), contents="noise", folder=folder,
                       steps=steps, width=8, batch_size=4, checkpoint_every=2, runtime=CPU)  # fmt: skip

    made = Store(out).make("denoiser", {"steps": steps}, build, work={}, joint=True)
    return load_label_network(made.folder).state_dict()


def images(rows: int, seed: int) -> TrainingSet:
    drawn = np.random.default_rng(seed).integers(0, 255, (rows, 1, 32, 32), dtype=np.uint8)
    weights = np.linspace(0.5, 1.5, rows, dtype=np.float32)
    return TrainingSet(torch.from_numpy(drawn), labels(rows, seed), weights, tuple(f"u{seed}-{i}" for i in range(rows)))


def classifier(out: Path, steps: int, precision: str = "fp32") -> Weights:
    trained = fit_classifier(images(40, 1), images(16, 2), runtime=CPU, store=Store(out), steps=steps, batch_size=8,
                             evaluate_every=steps, precision=precision)  # fmt: skip
    return trained.net.state_dict()


def classifier_bf16(out: Path, steps: int) -> Weights:
    return classifier(out, steps, "bf16")


def sparse(out: Path, steps: int) -> Weights:
    """The three phases, each from the first weights: the result of one would carry its rounding to the next."""
    z, y = noise_like(range(8 * steps), (2, 8, 8)), torch.from_numpy(labels(8 * steps, 3))
    setup = TrainingSetup(z, y, 8, 5e-3, 1e-2, 1.0, CPU)
    fresh = partial(SimplicialCoder, groups=2, vocabulary=4, temperature=0.2, width=4, channels=2, findings=2)
    imitate(setup, fresh(seed=1), fresh(seed=2), 1, 1)
    adapt(setup, fresh(seed=3), 1, 1)
    interact(setup, fresh(seed=4), 1, 1, 1, lambda: 0.0)
    return {}


X, UNITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), [f"p{i % 16}" for i in range(40)]
DP: dict[str, Any] = {"noise_multiplier": 1.0, "epsilon": float("inf"), "delta": 1e-3, "units": 16,
                      "max_physical_batch_size": 2, "grad_sample_mode": GradSampleMode.BOOKKEEPING}  # fmt: skip


def row_loss(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
    moved = X[rows] + 0.1 * torch.randn(len(rows), 3, generator=draw)
    return (network(moved) - X[rows].sum(1, keepdim=True)).pow(2).flatten(1).mean(1)


def private(out: Path, steps: int) -> Weights:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    training = Training(steps=steps, batch_size=4, learning_rate=0.05, warmup_steps=0, checkpoint_every=2)
    made = fit_private(network, row_loss, UNITS, training=training, private=PrivacySettings(**DP, secure_mode=False),
                       runtime=CPU, folder=out, key="k", name="probe", data="d")  # fmt: skip
    assert made.steps == steps
    return network.state_dict()


def noise(out: Path, steps: int) -> Weights:
    """Gradients times the batch size in a step in which nearly all of them are noise that nobody can draw again."""
    seen: list[Tensor] = []
    torch.manual_seed(0)
    network, sent = (
        nn.Linear(3, 40_000, bias=False),
        register_optimizer_step_pre_hook(
            lambda optimizer, *_: seen.append(optimizer.param_groups[0]["params"][0].grad.clone())
        ),
    )
    settings = PrivacySettings(**DP, secure_mode=True, max_grad_norm=0.5)
    fit_private(network, lambda net, rows, draw: net(X[rows])[:, 0].square(), UNITS, private=settings, runtime=CPU,
                training=Training(steps=1, batch_size=4), folder=out, key="k", name="noise", data="d")  # fmt: skip
    sent.remove()
    assert torch.equal(processes.spread(seen[0].clone()), seen[0])
    return {"noise": 4 * seen[0][1:]}


def main(out: Path, steps: int, *cases: str) -> None:
    losses, advance = list[float](), State.advance

    def recorded(state: State, loss: float) -> None:
        losses.append(loss)
        advance(state, loss)

    with patch.object(State, "advance", recorded), processes.joined("cpu"):
        for case in cases:
            weights = globals()[case](out / case, steps)
            if processes.first():
                write_json(out / case / "losses.json", losses)
                write_tensors(out / case / "weights.safetensors", weights or {"none": torch.zeros(1)})
            losses.clear()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
