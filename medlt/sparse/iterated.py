"""Iterated learning of a simplicial code: imitation, adaptation and interaction, generation by generation.

Elberg, Parra, Petrache, arXiv 2405.01705, section 3;
iterated learning of simplicial codes: Ren et al., arXiv 2310.18777.

    for g in 0 .. G-1:
        imitation (g > 0)   teacher = best encoder of generation g-1, frozen; student = fresh encoder
        adaptation (g > 0)  D and C of generation g-1 adapt to the student
        interaction         E, D, C together, early stop on validation macro AP, the best epoch is kept

Each finished generation is one artifact of the store: its coder and its row of metrics. A generation depends on those
before and on (seed, step) only. So a resumed run gives the same bytes, and runs with different numbers of generations
share the generations that they have in common.

A generation may collapse (`medlt.sparse.collapse`). It is then trained once more, with a seed derived from its own. If
that collapses too, the next generation has the newest generation that is not collapsed as its teacher: students of a
collapsed code learn its single token. Without one, the next generation starts as the first does. The result is the
healthiest generation, never a collapsed one.

Changes to the published code: tokens are sampled with the vocabulary axis last (the published code reshapes NCHW and
samples image columns); D is linear; fusion uses the healthiest generation (the published code loads the first);
`embedding` and `phases` describe what keeps the code sparse.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from medlt.files import digest
from medlt.metrics.draws import owners
from medlt.rows import Rows, chunks
from medlt.sparse import code_metrics, collapse
from medlt.sparse.embedding import SimplicialCoder, evaluating, initialise, read_metadata
from medlt.sparse.phases import TrainingSetup, adapt, imitate, interact
from medlt.sparse.private import PrivatePhases, private_steps, require_patients
from medlt.store import Artifact, Store
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.types import InputError

FORMAT = 2  # part of the key: increase it if the same settings would give another code
FILE = "coder.safetensors"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Iterated:
    """The coder of the healthiest generation, in eval mode, and one row of metrics for each trained generation.

    Columns: `code_metrics.COLUMNS`. `chosen` is true in one row.
    """

    coder: SimplicialCoder
    metrics: pd.DataFrame

    @property
    def chosen(self) -> pd.Series:
        """The row of the coder."""
        return self.metrics[self.metrics["chosen"]].iloc[0]


@dataclass(frozen=True)
class Generation:
    """A finished generation. `problem` says why it is collapsed, "" if it is not."""

    number: int
    retry: int
    artifact: Artifact
    row: Mapping[str, float]
    problem: str


@dataclass(frozen=True)
class _Loop:
    """Settings of all generations. `key` is made of settings and data; `made` holds the finished generations."""

    setup: TrainingSetup
    val_latents: Rows
    val_labels: np.ndarray
    epochs: tuple[int, int, int]
    patience: int
    key: Mapping[str, Any]
    code: Mapping[str, Any]
    private: PrivatePhases | None = None
    made: list[Generation] = field(default_factory=list)

    @cached_property
    def blank(self) -> dict[str, float]:
        """The metrics of a code that says nothing, on the validation rows."""
        return code_metrics.blank_code(self.val_latents, self.val_labels)

    @property
    def healthy(self) -> list[Generation]:
        """The generations that are not collapsed."""
        return [one for one in self.made if not one.problem]

    @torch.no_grad()
    def score(self, coder: SimplicialCoder) -> float:
        """Return the validation macro AP, or minus the reconstruction error if no finding has a positive."""
        scores, errors = [], []
        with evaluating(coder):
            for z in chunks(self.val_latents, code_metrics.CHUNK):
                z = z.float().to(self.setup.device)
                s = coder.code(z)
                scores.append(coder.classify(s).cpu().numpy())
                errors.append(float(F.l1_loss(coder.decode(s), z)))
        score = code_metrics.macro_ap(self.val_labels, np.concatenate(scores))
        return score if math.isfinite(score) else -float(np.mean(errors))

    def advance(self, store: Store, g: int) -> None:
        """Train generation g, once more if it collapses, or load it from the store."""
        build = self.generation if self.private is None else self.private_generation
        for retry in range(2 if self.private is None else 1):
            key = {**self.key, "generation": g, **({"retry": retry} if retry else {})}
            setup = replace(self.setup, runtime=self.setup.runtime.seeded("retry", retry)) if retry else self.setup
            artifact = store.make("sparse", key, partial(build, g, setup), joint=True)
            if self.private is not None:
                self.private.account(g, artifact)
            row = _row(artifact)
            self.made.append(Generation(g, retry, artifact, row, self.problem(row)))
            if not self.made[-1].problem:
                break

    def problem(self, row: Mapping[str, float]) -> str:
        """Return why a generation with these metrics is collapsed, "" if it is not."""
        vocabulary = int(self.code["vocabulary"])
        if self.private is not None:
            return collapse.too_few_tokens(row["tokens_on_noise"], vocabulary)
        return collapse.problem(row, self.blank, vocabulary, [one.row for one in self.healthy])

    def choose(self) -> Generation:
        """Return the healthiest generation; the newest in private training. Raises InputError if all are collapsed."""
        if not self.healthy:
            last = self.made[-1]
            raise InputError(
                f"sparse: the code collapsed in every generation ({last.problem}); lower sparse.learning_rate (now "
                f"{self.setup.learning_rate:g}) or raise sparse.interaction_epochs (now {self.epochs[2]})"
                + ("" if self.private is None else ", or raise privacy.epsilon")
            )
        if self.private is not None:
            return self.healthy[-1]
        rows = [one.row for one in self.healthy]
        return self.healthy[collapse.healthiest(rows, self.blank, int(self.code["vocabulary"]))]

    def generation(self, g: int, setup: TrainingSetup, folder: Path) -> None:
        """Train generation g and write its file."""
        imitation, adaptation, interaction = self.epochs
        teacher, coder = self.pair(g, setup)
        agreement = math.nan
        if teacher is not None:
            imitate(setup, coder, teacher, imitation, g, folder)
            agreement = code_metrics.agreement(coder, teacher, self.val_latents)
            adapt(setup, coder, adaptation, g, folder)
        interact(setup, coder, interaction, self.patience, g, lambda: self.score(coder), folder)
        train = (setup.latents, setup.labels.numpy())
        row = code_metrics.measure(coder, *train, self.val_latents, self.val_labels, self.setup.seed)
        _save(folder, coder, {"agreement": agreement} | row)

    def private_generation(self, g: int, setup: TrainingSetup, folder: Path) -> None:
        """Train generation g privately (`medlt.sparse.private`) and write its file."""
        assert self.private is not None
        teacher, coder = self.pair(g, setup)
        agreement = math.nan
        for phase in self.private.phases(g, setup, coder, teacher, folder):
            if teacher is not None and phase == "imitation":
                agreement = code_metrics.agreement(coder, teacher, self.val_latents)
        held = (self.val_latents, self.val_labels)
        row = code_metrics.measure(coder, *held, *held, setup.seed) | {"probe_ap": math.nan}
        noise = code_metrics.tokens_on_noise(coder, self.val_latents.shape[1:], setup.seed)
        _save(folder, coder, {"agreement": agreement, "tokens_on_noise": noise} | row)

    def pair(self, g: int, setup: TrainingSetup) -> tuple[SimplicialCoder | None, SimplicialCoder]:
        """Return the teacher of generation g, None without one, and its student: the teacher with a new encoder."""
        before = [one for one in self.healthy if one.number < g]
        if not before:
            fresh = SimplicialCoder(seed=setup.seed, **self.code)
            if g:
                initialise(fresh, setup.seed, g)
            return None, fresh
        teacher = SimplicialCoder.load(before[-1].artifact.path(FILE)).to(setup.device)
        student = copy.deepcopy(teacher)
        initialise(student.encoder, setup.seed, g)
        return teacher, student


def _save(folder: Path, coder: SimplicialCoder, row: dict[str, float]) -> None:
    """Write the coder with its metrics; NaN becomes null."""
    coder.save(folder / FILE, metrics={k: None if math.isnan(v) else v for k, v in row.items()})


def _check(latents: Rows, labels: np.ndarray, name: str) -> None:
    """Raise InputError for lengths that differ, no rows, or labels that are not 0, 1 or NaN."""
    if len(latents) != len(labels) or not len(latents):
        raise InputError(f"{name}: {len(latents)} latents but {len(labels)} label rows; give one row for each latent")
    known = labels[~np.isnan(labels)]
    if not np.isin(known, (0.0, 1.0)).all():
        raise InputError(f"{name}: a label is {known[~np.isin(known, (0.0, 1.0))][0]:g}; labels are 0, 1 or NaN")


def _row(made: Artifact) -> dict[str, float]:
    """Return the metrics of a finished generation."""
    return {k: math.nan if v is None else v for k, v in read_metadata(made.path(FILE))["metrics"].items()}


def _table(loop: _Loop, chosen: Generation) -> pd.DataFrame:
    """Return the metrics of all trained generations."""
    rows = [
        {"generation": one.number, "retry": one.retry, **one.row, "collapsed": bool(one.problem),
         "chosen": one is chosen}
        for one in loop.made
    ]  # fmt: skip
    return pd.DataFrame(rows)[list(code_metrics.COLUMNS)]


def _warn(loop: _Loop, chosen: Generation) -> None:
    """Log one line if a generation collapsed."""
    parts = []
    for first in (one for one in loop.made if one.problem and not one.retry):
        again = next((one for one in loop.made if one.number == first.number and one.retry), None)
        ending = "" if again is None else f", {'and again' if again.problem else 'not'} with another seed"
        parts.append(f"generation {first.number} collapsed ({first.problem}){ending}")
    if parts:
        log.warning("sparse code: %s; generation %d is used", "; ".join(parts), chosen.number)


def iterate(
    latents: Rows, labels: np.ndarray, val_latents: Rows, val_labels: np.ndarray, *, contents: str,
    val_contents: str, runtime: Runtime, store: Store,
    groups: int = 16, vocabulary: int = 16, temperature: float = 0.05, width: int = 32, generations: int = 1,
    imitation_epochs: int = 8, adaptation_epochs: int = 1, interaction_epochs: int = 36, patience: int = 36,
    batch_size: int = 16, learning_rate: float = 5e-3, weight_decay: float = 1e-2, classification_weight: float = 1.0,
    private: PrivateFit | None = None, patients: Sequence[str] = (), units: int = 0,
) -> Iterated:  # fmt: skip
    """Learn a simplicial code of standardised latents [N,C,h,w], with labels float32 [N,K] of 1, 0 and NaN.

    Latents may be memory-mapped. `contents` and `val_contents` are digests of all latents, or of the pixels, the codec
    and the standardiser that they come from. The store keeps each generation by contents, labels, settings and seed.
    `private` trains every phase privately instead, with `patients`, one for each latent, as units, of which `units` is
    the public number (see `medlt.sparse.private`), and accounts for each phase, also if it is loaded from the store.
    Logs one warning if a generation collapsed. Raises InputError for labels that are not 1, 0 or NaN, lengths that
    differ, latents with an odd side, and a code that collapses in every generation.
    """
    settings: dict[str, Any] = {k: v for k, v in locals().items() if isinstance(v, int | float)}
    labels, val_labels = (np.asarray(y, np.float32) for y in (labels, val_labels))
    _check(latents, labels, "train split")
    _check(val_latents, val_labels, "val split")
    setup = TrainingSetup(
        latents, torch.from_numpy(labels), batch_size, learning_rate, weight_decay, classification_weight, runtime
    )
    del settings["generations"], settings["units"]
    key = {"format": FORMAT, "settings": settings, "seed": runtime.seed, "train": _named(contents, latents, labels),
           "val": _named(val_contents, val_latents, val_labels)}  # fmt: skip
    epochs = (imitation_epochs, adaptation_epochs, interaction_epochs)
    code: dict[str, Any] = {"groups": groups, "vocabulary": vocabulary, "temperature": temperature, "width": width}
    code |= {"channels": latents.shape[1], "findings": labels.shape[1]}
    loop = _Loop(setup, val_latents, val_labels, epochs, patience, key, code)
    if private is not None:
        loop = _private(loop, private, patients, units, generations)
    for g in range(generations):
        loop.advance(store, g)
        runtime.progress("iterated learning", g + 1, generations)
    chosen = loop.choose()
    _warn(loop, chosen)
    coder = SimplicialCoder.load(chosen.artifact.path(FILE)).to(setup.device)
    return Iterated(coder, _table(loop, chosen))


def _private(loop: _Loop, fit: PrivateFit, patients: Sequence[str], units: int, generations: int) -> _Loop:
    """Return the loop with private phases."""
    if units < 1:
        raise InputError("private training: give units, the public number of patients")
    of = owners([str(one) for one in require_patients(patients, len(loop.setup.latents))])
    steps = private_steps(units, loop.setup.batch_size, generations, *loop.epochs)
    key = {**loop.key, "private": fit.digest, "patients": digest(of.tolist())}
    private = PrivatePhases(fit, patients, steps, digest(key))
    return replace(loop, key=key, private=private, code={**loop.code, "norm": "group"})


def _named(contents: str, latents: Rows, labels: np.ndarray) -> str:
    """Return a digest of latents, named by `contents`, and labels."""
    return digest(contents, list(latents.shape), labels.tobytes())
