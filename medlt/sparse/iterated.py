"""Iterated learning of a simplicial code: imitation, adaptation and interaction, generation by generation.

Elberg, Parra, Petrache, arXiv 2405.01705, section 3;
iterated learning of simplicial codes: Ren et al., arXiv 2310.18777.

    for g in 0 .. G-1:
        imitation (g > 0)   teacher = best encoder of generation g-1, frozen; student = fresh encoder
        adaptation (g > 0)  D and C of generation g-1 adapt to the student
        interaction         E, D, C together, early stop on validation macro AP, the best epoch is kept

Each finished generation is one artifact of the store: its coder and its row of metrics. A generation depends on the one
before and on (seed, step) only. So a resumed run gives the same bytes, and runs with different numbers of generations
share the generations that they have in common.

Changes to the published code: tokens are sampled with the vocabulary axis last (the published code reshapes NCHW and
samples image columns); D is linear; fusion uses the last generation (the published code loads the first); `embedding`
and `phases` describe what keeps the code sparse.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.files import digest
from medlt.metrics.draws import owners
from medlt.sparse import code_metrics
from medlt.sparse.embedding import SimplicialCoder, evaluating, initialise, read_metadata
from medlt.sparse.phases import TrainingSetup, adapt, imitate, interact
from medlt.sparse.private import PrivatePhases, private_steps, require_patients
from medlt.store import Artifact, Store
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.types import InputError

FORMAT = 1  # part of the key: increase it if the same settings would give another code
FILE = "coder.safetensors"


@dataclass(frozen=True)
class Iterated:
    """The coder of the last generation, in eval mode, and one row of `code_metrics` for each generation."""

    coder: SimplicialCoder
    metrics: pd.DataFrame


@dataclass(frozen=True)
class _Loop:
    """Settings of all generations. `key` is made of settings and data; `made` holds the finished generations."""

    setup: TrainingSetup
    val_latents: Tensor
    val_labels: np.ndarray
    epochs: tuple[int, int, int]
    patience: int
    key: Mapping[str, Any]
    private: PrivatePhases | None = None
    made: list[Artifact] = field(default_factory=list)

    @torch.no_grad()
    def score(self, coder: SimplicialCoder) -> float:
        """Return the validation macro AP, or minus the reconstruction error if no finding has a positive."""
        scores, errors = [], []
        with evaluating(coder):
            for z in torch.split(self.val_latents, code_metrics.CHUNK):
                z = z.float().to(self.setup.device)
                s = coder.code(z)
                scores.append(coder.classify(s).cpu().numpy())
                errors.append(float(F.l1_loss(coder.decode(s), z)))
        score = code_metrics.macro_ap(self.val_labels, np.concatenate(scores))
        return score if math.isfinite(score) else -float(np.mean(errors))

    def advance(self, store: Store, fresh: SimplicialCoder) -> None:
        """Train the next generation from the last one (the first from `fresh`), or load it from the store."""
        g = len(self.made)
        build = self.generation if self.private is None else self.private_generation
        made = store.make("sparse", {**self.key, "generation": g}, lambda folder: build(g, fresh, folder))
        if self.private is not None:
            self.private.account(g, made)
        self.made.append(made)

    def generation(self, g: int, fresh: SimplicialCoder, folder: Path) -> None:
        """Train generation g and write its file."""
        imitation, adaptation, interaction = self.epochs
        agreement, coder, setup = math.nan, fresh, self.setup
        if g > 0:
            teacher, coder = self.pair(g)
            imitate(setup, coder, teacher, imitation, g, folder)
            agreement = code_metrics.agreement(coder, teacher, self.val_latents)
            adapt(setup, coder, adaptation, g, folder)
        interact(setup, coder, interaction, self.patience, g, lambda: self.score(coder), folder)
        train = (setup.latents, setup.labels.numpy())
        row = code_metrics.measure(coder, *train, self.val_latents, self.val_labels, setup.seed)
        _save(folder, coder, {"generation": float(g), "agreement": agreement} | row)

    def private_generation(self, g: int, fresh: SimplicialCoder, folder: Path) -> None:
        """Train generation g privately (`medlt.sparse.private`) and write its file."""
        assert self.private is not None
        teacher, coder = self.pair(g) if g else (None, fresh)
        agreement = math.nan
        for phase in self.private.phases(g, self.setup, coder, teacher, folder):
            if teacher is not None and phase == "imitation":
                agreement = code_metrics.agreement(coder, teacher, self.val_latents)
        held = (self.val_latents, self.val_labels)
        row = code_metrics.measure(coder, *held, *held, self.setup.seed) | {"probe_ap": math.nan}
        _save(folder, coder, {"generation": float(g), "agreement": agreement} | row)

    def pair(self, g: int) -> tuple[SimplicialCoder, SimplicialCoder]:
        """Return the teacher of generation g and its student, a copy of the teacher with a new encoder."""
        teacher = SimplicialCoder.load(self.made[g - 1].path(FILE)).to(self.setup.device)
        student = copy.deepcopy(teacher)
        initialise(student.encoder, self.setup.seed, g)
        return teacher, student


def _save(folder: Path, coder: SimplicialCoder, row: dict[str, float]) -> None:
    """Write the coder with its metrics; NaN becomes null."""
    coder.save(folder / FILE, metrics={k: None if math.isnan(v) else v for k, v in row.items()})


def _check(latents: Tensor, labels: np.ndarray, name: str) -> None:
    """Raise InputError for lengths that differ, no rows, or labels that are not 0, 1 or NaN."""
    if len(latents) != len(labels) or not len(latents):
        raise InputError(f"{name}: {len(latents)} latents but {len(labels)} label rows; give one row for each latent")
    known = labels[~np.isnan(labels)]
    if not np.isin(known, (0.0, 1.0)).all():
        raise InputError(f"{name}: a label is {known[~np.isin(known, (0.0, 1.0))][0]:g}; labels are 0, 1 or NaN")


def _table(loop: _Loop) -> pd.DataFrame:
    """Return the metrics of all generations."""
    rows = [read_metadata(made.path(FILE))["metrics"] for made in loop.made]
    table = pd.DataFrame([{k: math.nan if v is None else v for k, v in row.items()} for row in rows])
    return table.astype({"generation": int})[list(code_metrics.COLUMNS)]


def iterate(
    latents: Tensor, labels: np.ndarray, val_latents: Tensor, val_labels: np.ndarray, *, contents: str,
    val_contents: str, runtime: Runtime, store: Store,
    groups: int = 16, vocabulary: int = 16, temperature: float = 0.05, width: int = 32, generations: int = 5,
    imitation_epochs: int = 8, adaptation_epochs: int = 1, interaction_epochs: int = 6, patience: int = 3,
    batch_size: int = 16, learning_rate: float = 5e-3, weight_decay: float = 1e-2, classification_weight: float = 1.0,
    private: PrivateFit | None = None, patients: Sequence[str] = (),
) -> Iterated:  # fmt: skip
    """Learn a simplicial code of standardised latents [N,C,h,w], with labels float32 [N,K] of 1, 0 and NaN.

    Latents may be memory-mapped. `contents` and `val_contents` are digests of all latents, or of the pixels, the codec
    and the standardiser that they come from. The store keeps each generation by contents, labels, settings and seed.
    `private` trains every phase privately instead, with `patients`, one for each latent, as units (see
    `medlt.sparse.private`), and accounts for each phase, also if it is loaded from the store. Raises InputError for
    labels that are not 1, 0 or NaN, lengths that differ, and latents with an odd side.
    """
    settings: dict[str, Any] = {k: v for k, v in locals().items() if isinstance(v, int | float)}
    labels, val_labels = (np.asarray(y, np.float32) for y in (labels, val_labels))
    _check(latents, labels, "train split")
    _check(val_latents, val_labels, "val split")
    setup = TrainingSetup(
        latents, torch.from_numpy(labels), batch_size, learning_rate, weight_decay, classification_weight, runtime
    )
    del settings["generations"]
    key = {"format": FORMAT, "settings": settings, "seed": runtime.seed, "train": _named(contents, latents, labels),
           "val": _named(val_contents, val_latents, val_labels)}  # fmt: skip
    epochs = (imitation_epochs, adaptation_epochs, interaction_epochs)
    loop = _Loop(setup, val_latents, val_labels, epochs, patience, key)
    code: dict[str, Any] = {"groups": groups, "vocabulary": vocabulary, "temperature": temperature, "width": width}
    if private is not None:
        loop, code["norm"] = _private(loop, private, patients, generations), "group"
    fresh = SimplicialCoder(latents.shape[1], labels.shape[1], seed=runtime.seed, **code)
    for g in range(generations):
        loop.advance(store, fresh)
        runtime.progress("iterated learning", g + 1, generations)
    coder = SimplicialCoder.load(loop.made[-1].path(FILE)).to(setup.device)
    return Iterated(coder, _table(loop))


def _private(loop: _Loop, fit: PrivateFit, patients: Sequence[str], generations: int) -> _Loop:
    """Return the loop with private phases."""
    of = owners([str(one) for one in require_patients(patients, len(loop.setup.latents))])
    steps = private_steps(int(of.max()) + 1, loop.setup.batch_size, generations, *loop.epochs)
    key = {**loop.key, "private": fit.digest, "patients": digest(of.tolist())}
    return replace(loop, key=key, private=PrivatePhases(fit, patients, steps, digest(key)))


def _named(contents: str, latents: Tensor, labels: np.ndarray) -> str:
    """Return a digest of latents, named by `contents`, and labels."""
    return digest(contents, list(latents.shape), labels.tobytes())
