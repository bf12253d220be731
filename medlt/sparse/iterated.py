"""Iterated learning of a simplicial code: teach, imitate, use, and again.

Elberg, Parra, Petrache, arXiv 2405.01705, section 3;
iterated learning of simplicial codes: Ren et al., arXiv 2310.18777.

    for g in 0 .. G-1:
        imitation (g > 0)   teacher = best encoder of generation g-1, frozen; student = fresh encoder
        adaptation (g > 0)  D and C of generation g-1 learn to read the student
        interaction         E, D, C together, early stop on validation macro AP, the best epoch is kept

Each finished generation is one file, generation_NN.safetensors: its coder and its row of the health table. A
generation depends on the one before and on (seed, step) only, so a run that was stopped ends with the same bytes.

What we changed: words are sampled with the vocabulary moved last (the published code reshapes NCHW and samples image
columns); D is linear; fusion uses the last generation (the published code loads the first); what keeps the code sparse
is told in `embedding` and `phases`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.files import digest
from medlt.sparse import health
from medlt.sparse.embedding import SimplicialCoder, evaluating, initialise, told
from medlt.sparse.phases import Lesson, adapt, imitate, interact
from medlt.sparse.private import Private, private_steps, require_patients
from medlt.types import InputError, PrivateFit


@dataclass(frozen=True)
class Iterated:
    """The last generation's coder, in eval mode, and one row of measurements a generation (columns: `health`)."""

    coder: SimplicialCoder
    health: pd.DataFrame


@dataclass(frozen=True)
class _Loop:
    """The settings of all generations. `key` names them together with the data."""

    lesson: Lesson
    val_latents: Tensor
    val_labels: np.ndarray
    epochs: tuple[int, int, int]
    patience: int
    folder: Path
    key: str
    private: Private | None = None

    def path(self, g: int) -> Path:
        """The file of generation g."""
        return self.folder / f"generation_{g:02d}.safetensors"

    def finished(self, g: int) -> bool:
        """Whether generation g is there. Raises InputError if its file belongs to another run."""
        path = self.path(g)
        if path.exists() and told(path)["key"] != self.key:
            raise InputError(f"{path}: was made from other latents, labels or settings; choose another folder")
        return path.exists()

    @torch.no_grad()
    def score(self, coder: SimplicialCoder) -> float:
        """Validation macro AP; where no finding has a positive, minus the reconstruction error instead."""
        scores, errors = [], []
        with evaluating(coder):
            for z in torch.split(self.val_latents, health.CHUNK):
                z = z.float().to(self.lesson.device)
                s = coder.code(z)
                scores.append(coder.classify(s).cpu().numpy())
                errors.append(float(F.l1_loss(coder.decode(s), z)))
        found = health.macro_ap(self.val_labels, np.concatenate(scores))
        return found if math.isfinite(found) else -float(np.mean(errors))

    def generation(self, g: int, fresh: SimplicialCoder) -> None:
        """Make generation g from the file of g-1 (g = 0: from `fresh`) and write its file."""
        imitation, adaptation, interaction = self.epochs
        seed, agreement, coder = self.lesson.seed, math.nan, fresh
        if self.private is not None:
            return self.private_generation(g, fresh, self.private)
        if g > 0:
            teacher = SimplicialCoder.load(self.path(g - 1)).to(self.lesson.device)
            coder = copy.deepcopy(teacher)
            initialise(coder.encoder, seed, g)
            imitate(self.lesson, coder, teacher, imitation, g)
            agreement = health.agreement(coder, teacher, self.val_latents)
            adapt(self.lesson, coder, adaptation, g)
        interact(self.lesson, coder, interaction, self.patience, g, lambda: self.score(coder))
        labels = self.lesson.labels.numpy()
        row = health.measure(coder, self.lesson.latents, labels, self.val_latents, self.val_labels, seed)
        self.save(g, coder, {"generation": float(g), "agreement": agreement} | row)

    def private_generation(self, g: int, fresh: SimplicialCoder, private: Private) -> None:
        """The same by private trainings (medlt.sparse.private), each asked again where it is finished."""
        teacher = SimplicialCoder.load(self.path(g - 1)).to(self.lesson.device) if g else None
        agreement, coder = math.nan, fresh
        if teacher is not None:
            coder = copy.deepcopy(teacher)
            initialise(coder.encoder, self.lesson.seed, g)
        for phase in private.phases(g, self.lesson, coder, teacher):
            if teacher is not None and phase == "imitation" and not self.finished(g):
                agreement = health.agreement(coder, teacher, self.val_latents)
        if not self.finished(g):
            held = (self.val_latents, self.val_labels)
            row = health.measure(coder, *held, *held, self.lesson.seed) | {"probe_ap": math.nan}
            self.save(g, coder, {"generation": float(g), "agreement": agreement} | row)

    def save(self, g: int, coder: SimplicialCoder, row: dict[str, float]) -> None:
        """Write the file of generation g."""
        coder.save(self.path(g), key=self.key, health={k: None if math.isnan(v) else v for k, v in row.items()})


def _check(latents: Tensor, labels: np.ndarray, name: str) -> None:
    if len(latents) != len(labels) or not len(latents):
        raise InputError(f"{name}: {len(latents)} latents but {len(labels)} label rows; give one row a latent")
    known = labels[~np.isnan(labels)]
    if not np.isin(known, (0.0, 1.0)).all():
        raise InputError(f"{name}: a label is {known[~np.isin(known, (0.0, 1.0))][0]:g}; labels are 0, 1 or NaN")


def _table(loop: _Loop, generations: int) -> pd.DataFrame:
    rows = [told(loop.path(g))["health"] for g in range(generations)]
    table = pd.DataFrame([{k: math.nan if v is None else v for k, v in row.items()} for row in rows])
    return table.astype({"generation": int})[list(health.COLUMNS)]


def iterate(
    latents: Tensor, labels: np.ndarray, val_latents: Tensor, val_labels: np.ndarray, *, folder: Path,
    groups: int = 16, vocabulary: int = 16, temperature: float = 0.05, width: int = 32, generations: int = 5,
    imitation_epochs: int = 8, adaptation_epochs: int = 1, interaction_epochs: int = 6, patience: int = 3,
    batch: int = 16, learning_rate: float = 5e-3, weight_decay: float = 1e-2, classification_weight: float = 1.0,
    seed: int = 0, device: str = "cpu", progress: Callable[[str, int, int], None] | None = None,
    private: PrivateFit | None = None, patients: Sequence[str] = (),
) -> Iterated:  # fmt: skip
    """Learn a simplicial code of standardised latents [N,C,h,w], memory-mapped or not; labels float32 [N,K], 1/0/NaN.

    `folder` gets one file a generation; generations that are there already are not made again. `private` takes the
    place of every phase's loop, with `patients`, one a latent, as units (medlt.sparse.private says what changes then).
    Raises InputError for labels that are not 1/0/NaN, lengths that differ, latents of odd side, and a folder made with
    other settings.
    """
    settings: dict[str, Any] = {k: v for k, v in locals().items() if isinstance(v, int | float)}
    labels, val_labels = (np.asarray(y, np.float32) for y in (labels, val_labels))
    _check(latents, labels, "train split")
    _check(val_latents, val_labels, "val split")
    truth = torch.from_numpy(labels)
    lesson = Lesson(latents, truth, batch, learning_rate, weight_decay, classification_weight, seed, device)
    del settings["generations"]
    key = digest(settings, *_fingerprint(latents, labels), *_fingerprint(val_latents, val_labels))
    epochs = (imitation_epochs, adaptation_epochs, interaction_epochs)
    loop = _Loop(lesson, val_latents, val_labels, epochs, patience, Path(folder), key)
    code: dict[str, Any] = {"groups": groups, "vocabulary": vocabulary, "temperature": temperature, "width": width}
    if private is not None:
        loop, code["norm"] = _private(loop, private, patients, generations), "group"
    fresh = SimplicialCoder(latents.shape[1], labels.shape[1], seed=seed, **code).to(device)
    for g in range(generations):
        if not loop.finished(g) or private is not None:
            loop.generation(g, fresh)
        if progress:
            progress("iterated learning", g + 1, generations)
    return Iterated(SimplicialCoder.load(loop.path(generations - 1)).to(device), _table(loop, generations))


def _private(loop: _Loop, fit: PrivateFit, patients: Sequence[str], generations: int) -> _Loop:
    """The same loop, private."""
    units = len(set(require_patients(patients, len(loop.lesson.latents))))
    steps = private_steps(units, loop.lesson.batch, generations, *loop.epochs)
    key = digest(loop.key, "private")
    return replace(loop, key=key, private=Private(fit, patients, steps, loop.folder / "private", key))


def _fingerprint(latents: Tensor, labels: np.ndarray) -> Iterator[bytes]:
    """Bytes that name the data: all labels, and at most 64 latents, lest a memory-mapped cache be read whole."""
    yield str(tuple(latents.shape)).encode()
    yield labels.tobytes()
    yield latents[:: max(1, len(latents) // 64)].float().contiguous().numpy().tobytes()
