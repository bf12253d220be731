"""A variant of latent fusion measured: its sparse code, its images, and what they are worth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from medlt.checks.asserted import Asserted
from medlt.checks.consistency import LabelConsistency, best_of, thresholds
from medlt.classify.train import Classifier
from medlt.diffusion.backbone import Backbone
from medlt.evaluation.variants import kid_by_fold, measured
from medlt.sparse.iterated import Iterated, iterate
from medlt.types import Batch, Check, Finding
from pipelines import fusing
from pipelines.downstream import kept, prove
from pipelines.learnt import Learnt
from pipelines.making import joined
from pipelines.variant import Variant

HEALTH = ("mean_max_probability", "words_used", "agreement", "reconstruction_l1", "probe_ap", "val_macro_ap")


@dataclass(frozen=True)
class Study:
    """What all variants share."""

    ready: Learnt
    backbone: Backbone
    looks: tuple[Check, ...]
    downstream: bool = False

    @cached_property
    def lessons(self) -> tuple[Any, ...]:
        """Train latents, their labels, validation latents, their labels."""
        real = self.ready.real
        parts = (real.train, real.manifest.split("val"))
        return tuple(x for part in parts for x in (self.ready.latents(list(part.rows.index)), part.labels()))

    @cached_property
    def held_out(self) -> list[np.ndarray]:
        """What each judge sees of the validation images that have a tail finding: features [N,D]."""
        real, size = self.ready.real, self.ready.run.config.classifier.size
        val = real.training_set("val", size)
        tail = [real.manifest.findings.index(name) for name in real.tail]
        images = val.images[torch.from_numpy((val.labels[:, tail] == 1).any(1))]
        return [judge.features(images).numpy() for judge in self.judges]

    @property
    def judges(self) -> list[Classifier]:
        """The judges as classifiers, which have features."""
        return [judge for judge in self.ready.judges.judges if isinstance(judge, Classifier)]

    def code(self, one: Variant) -> Iterated:
        """Its sparse code, from the folder of all that differ in the number of generations only."""
        run, options = self.ready.run, one.config.sparse.model_dump()
        folder, seed = run.path("stages", "codes", one.code), run.config.seed + one.seed
        return iterate(*self.lessons, **options, seed=seed, folder=folder, progress=self.ready.progress)

    def make(self, one: Variant, learnt: Iterated) -> tuple[Batch, list[Finding]]:
        """All its images, and what the checks say of them, the best of each slot last."""
        ready = self.ready
        method = fusing.fusion(ready, one.method, learnt.coder, self.backbone)
        plan = method.plan(ready.real.shortfall(), ready.run.config.seed + one.seed)
        batch = joined(list(method.run(plan[plan["candidate"] < ready.run.config.need.candidates])))
        found = [finding for look in self.looks for finding in look(batch)]
        return batch, [*found, *best_of(batch.rows, found)]

    def figures(self, one: Variant) -> tuple[pd.DataFrame, dict[str, float]]:
        """(its images, columns as in `medlt.evaluation.variants.IMAGES`; what they amount to)."""
        learnt, start = self.code(one), time.perf_counter()
        batch, found = self.make(one, learnt)
        seconds, images = time.perf_counter() - start, _table(batch, found)
        kid, error = self.kid(batch.images, torch.tensor(batch.rows["fold"].to_numpy(np.int64, copy=True)))
        health = learnt.health.iloc[-1]
        told = {name: float(health[name]) for name in HEALTH} | {"kid": kid, "kid_sd": error}
        proved = prove(self.ready, one, batch, found) if self.downstream else {}
        return images, measured(images) | told | proved | {"seconds": round(seconds, 2)}

    def kid(self, images: torch.Tensor, fold: torch.Tensor) -> tuple[float, float]:
        """Images [N,1,H,W], each seen by the judge of its fold [N], which never saw its parents, against `held_out`."""
        seen = [judge.features(images[fold == k]).numpy() for k, judge in enumerate(self.judges)]
        return kid_by_fold(list(zip(self.held_out, seen, strict=True)))

    def reference(self) -> dict[str, float]:
        """Real train images of the tail as seen by judges that never saw them: what a variant can hope for."""
        ready, rows, findings = self.ready, self.ready.real.train.rows, list(self.ready.real.tail)
        positive, held_out = rows[findings] == 1, ready.judges.held_out[findings]
        limits = thresholds(held_out, rows[findings], ready.run.config.checks.quantile)
        table = pd.DataFrame(
            {"judge": held_out.where(positive).stack(), "passed": held_out.ge(limits).stack()}
        ).dropna()
        parent = table.index.get_level_values(0).to_numpy()
        blank = {"asserted": 1.0, "kept": False, "mask_share": float("nan"), "tail_mass": float("nan")}
        train = ready.real.training_set("train", ready.run.config.classifier.size)
        chosen = positive.any(axis=1).to_numpy()
        fold = torch.tensor(np.where(chosen, ready.judges.fold.loc[rows.index].to_numpy(), -1))
        kid, error = self.kid(train.images, fold)
        return measured(table.assign(parent_a=parent, **blank)) | {"kid": kid, "kid_sd": error}


def _table(batch: Batch, found: list[Finding]) -> pd.DataFrame:
    said = pd.DataFrame([vars(finding) for finding in found]).set_index(["check", "uid"])
    judge, asserted = said.loc[LabelConsistency.name], said.loc[Asserted.name]
    return batch.rows[["finding", "parent_a", "mask_share", "tail_mass"]].assign(
        judge=judge["value"],
        passed=judge["passed"],
        asserted=asserted["passed"],
        kept=batch.rows.index.isin(kept(found)),
    )
