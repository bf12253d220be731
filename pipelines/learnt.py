"""What every method stands on, learnt once or found learnt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from medlt import config as configs
from medlt.checks.folds import Crossfit
from medlt.diffusion.cache import Latents
from medlt.runs import Run
from medlt.synthesis.plan import Collection as TrainRows
from pipelines import blindness, encoding, judging, learning, opening
from pipelines.stages import Collection, Progress, quiet

KNOWN = ("patient_id", "view", "sex", "age")


@dataclass(frozen=True)
class Learnt:
    """A run, its real rows and their latents; the judges, trained when first asked for."""

    run: Run
    real: Collection
    latents: Latents
    progress: Progress

    @cached_property
    def judges(self) -> Crossfit:
        """Their folds decide who may judge, and be paired with, whom; a blind run has none."""
        if self.run.config.blind:
            return blindness.unjudged(self.real.asked, self.real.manifest.findings)
        return judging.judges(self.run, self.real, self.progress)

    @property
    def rows(self) -> TrainRows:
        """The train rows as a method sees them; in a blind run, one made-up row a finding in their place."""
        rows, findings = self.real.train.rows, self.real.manifest.findings
        if self.run.config.blind:
            return blindness.only(self.real.asked, findings)
        known = [name for name in KNOWN if name in rows]
        return TrainRows(rows[[*known, *findings]].assign(fold=self.judges.fold), findings, self.real.tail)


def learn(config: configs.RunConfig, progress: Progress = quiet) -> Learnt:
    """Open the data and learn from it. Raises InputError, before anything is written, on bad input."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    run, real = opening.collect(config)
    codec = encoding.codec(run, real, progress)
    latents = learning.latents(run, real, codec, progress)
    return Learnt(run, real, latents, progress)
