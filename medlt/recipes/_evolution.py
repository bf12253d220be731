"""Private Evolution in a run: the votes of the patients, their noise, and the method that varies the winners.

Each vote is one artifact file, written once: the noise of a generation is drawn once, however often the run is
interrupted, and everything after it is a function of the seed and of the noisy votes. So a resumed run has the bytes of
an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlt import config as configs
from medlt.diffusion.batching import fixed_batches
from medlt.files import read_tensors, write_tensors
from medlt.privacy import votes
from medlt.privacy.dpsgd.randomness import Randomness, Secure, Seeded
from medlt.privacy.ledger import MECHANISM, Mechanism, read_mechanism, write_mechanism
from medlt.recipes._cohort import Cohort, patients
from medlt.recipes._methods import RunParts, sampling_parts
from medlt.recipes._privacy import PrivateTraining, noise
from medlt.rng import seed_of
from medlt.store import Artifact
from medlt.synthesis.conditional import Conditional
from medlt.synthesis.evolution import PrivateEvolution
from medlt.synthesis.from_noise import FromNoise

PIECE = 256
log = logging.getLogger(__name__)


def evolution_method(chosen: configs.Evolution, parts: RunParts) -> PrivateEvolution:
    """Let the patients vote, or load their noisy votes, and return the method that varies the last winners."""
    private = parts.learnt.private
    assert isinstance(private, PrivateTraining)
    backbone = parts.train_denoiser()
    guides = parts.build_guides(chosen.guidance, backbone)
    shared = sampling_parts(parts.run, parts.learnt, chosen, backbone, guides)
    first = FromNoise(shape=parts.shape, initial_noise_scale=chosen.initial_noise_scale, skip_steps=chosen.skip_steps,
                      **{**shared, "num_candidates": 1})  # fmt: skip
    generations = Generations(chosen, parts, private, first)
    with parts.run.stage(votes.STAGE):
        made = generations.artifact()
        private.account(made.path(MECHANISM))
    parts.models[votes.STAGE] = read_mechanism(made.path(MECHANISM)).weights
    last = len(chosen.strength) - 1
    population, voted = (made.path(name) for name in (population_file(last), votes.file_of(last)))
    drawn = generations.next(read_tensors(population), votes.read_votes(voted), last)
    return replace(drawn, num_candidates=shared["num_candidates"])


def population_file(generation: int) -> str:
    """Return the name of a population: finding number -> latents [n,C,h,w]."""
    return f"population_{generation}.safetensors"


def randomness(private: configs.Privacy, seed: int) -> Randomness:
    """Return the source of the noise."""
    return Secure() if private.secure_mode else Seeded(seed)


@dataclass(frozen=True)
class Generations:
    """The generations of a run; first: the method of generation 0."""

    chosen: configs.Evolution
    parts: RunParts
    private: PrivateTraining
    first: FromNoise

    @property
    def cohort(self) -> Cohort:
        """The real rows."""
        return self.parts.learnt.cohort

    @property
    def findings(self) -> tuple[str, ...]:
        """The requested findings, in the order of a label vector: the rows of the votes."""
        return tuple(name for name in self.cohort.findings if name in self.cohort.requested)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise, in votes."""
        return votes.SENSITIVITY * noise(self.parts.run.config)

    def artifact(self) -> Artifact:
        """Return all populations and noisy votes, and the mechanism; make those that do not exist."""
        run, train = self.parts.run, self.cohort.train
        settings = self.chosen.model_dump(mode="json", exclude={"kind"})
        models = {"backbone": self.first.backbone.digest, "codec": self.parts.learnt.latents.codec.digest}
        key: dict[str, Any] = {
            "format": 1, "settings": settings, **models, "shape": list(self.parts.shape), "size": run.config.size,
            "requested": list(self.findings), "data": train.digest(), "images": self.cohort.named(train),
            "private": self.private.digest, "seed": run.config.seed, "precision": run.config.precision,
        }  # fmt: skip
        return run.store.make(votes.STAGE, key, self.build)

    def build(self, folder: Path) -> None:
        """Write the files of the artifact; those that an interrupted call wrote are kept."""
        method: Conditional = self.first
        voted: list[Tensor] = []
        for generation in range(len(self.chosen.strength)):
            made, counted = folder / population_file(generation), folder / votes.file_of(generation)
            if not made.is_file():
                write_tensors(made, self.population(method, generation))
            population = read_tensors(made)
            if not counted.is_file():
                source = randomness(self.private.chosen, seed_of(self.parts.run.config.seed, votes.STAGE, generation))
                write_tensors(counted, {"votes": votes.noisy(self.counts(population), self.noise, source)})
            voted.append(votes.read_votes(counted))
            self.warn(voted[-1], generation)
            self.parts.run.runtime.progress(votes.STAGE, generation + 1, len(self.chosen.strength))
            method = self.next(population, voted[-1], generation)
        write_mechanism(folder / MECHANISM, self.mechanism(voted))

    def warn(self, voted: Tensor, generation: int) -> None:
        """Name the findings whose votes drowned in the noise: a function of the noisy votes alone."""
        lost = votes.drowned(voted, self.chosen.threshold * self.noise)
        if names := [name for name, none in zip(self.findings, lost, strict=True) if none]:
            log.warning("vote %d: no image of %s has votes above the noise, so its images are drawn evenly",
                        generation + 1, ", ".join(names))  # fmt: skip

    def population(self, method: Conditional, generation: int) -> dict[str, Tensor]:
        """Return finding number -> latents [n,C,h,w] of a generation."""
        seed = seed_of(self.parts.run.config.seed, "generation", generation)
        rows = method.plan(dict.fromkeys(self.findings, self.chosen.population), seed)
        z = method.sampled(rows).nan_to_num()  # a row that overflowed gets no votes, and stops nothing
        return {str(f): z[np.flatnonzero(rows["finding"] == name)] for f, name in enumerate(self.findings)}

    def counts(self, population: Mapping[str, Tensor]) -> np.ndarray:
        """Return the votes of all patients without noise, float64 [F,n]."""
        train, decoded = self.cohort.train, self.first.decoded
        small = [self.thumbnails(decoded(population[str(f)])) for f in range(len(self.findings))]
        uids = list(train.rows.index)
        pieces = [uids[i : i + PIECE] for i in range(0, len(uids), PIECE)]
        real = [self.thumbnails(self.cohort.images(train, self.parts.run.config.size, one) / 255) for one in pieces]
        seen = torch.cat(real) if real else small[0][:0]
        near = votes.nearest(seen.numpy(), torch.stack(small).numpy())
        has = (train.rows[list(self.findings)] == 1).to_numpy()
        by_patient = self.private.chosen.privacy_unit == "patient"
        owners = patients(train) if by_patient else [str(row) for row in range(len(uids))]
        return votes.count_votes(near, has, owners, self.chosen.population)

    def thumbnails(self, images: Tensor) -> Tensor:
        """Return the small images that are compared, uint8 [B,D]; each depends on its own image alone."""
        return fixed_batches(lambda some: votes.thumbnails(some, self.chosen.vote_size))(images)

    def next(self, population: Mapping[str, Tensor], voted: Tensor, generation: int) -> PrivateEvolution:
        """Return the method that varies the winners of a vote: a function of the noisy votes alone."""
        threshold = self.chosen.threshold * self.noise
        share = votes.shares(voted, threshold)
        common = {name: getattr(self.first, name) for name in SHARED}
        return PrivateEvolution(
            population={name: population[str(f)] for f, name in enumerate(self.findings)},
            shares={name: share[f] for f, name in enumerate(self.findings)},
            strength=self.chosen.strength[generation],
            **common,
        )

    def mechanism(self, voted: list[Tensor]) -> Mechanism:
        """Return the record of the votes for the ledger: a Gaussian mechanism in which every patient is."""
        chosen, generations = self.private.chosen, len(voted)
        return Mechanism(
            stage=votes.STAGE, privacy_unit=chosen.privacy_unit, units=chosen.patients, sample_rate=1.0,
            noise_multiplier=self.noise / votes.SENSITIVITY, max_grad_norm=votes.SENSITIVITY, steps=generations,
            planned=generations, max_images_per_patient=votes.ALL, noise_multiplicity=1,
            grad_sample_mode="none: noisy votes", randomness=randomness(chosen, 0).description,
            secure_mode=chosen.secure_mode, data=self.cohort.train.digest(), weights=votes.digest_of(voted),
            versions={"torch": metadata.version("torch")},
        )  # fmt: skip


SHARED = (
    "train", "backbone", "standardiser", "decode", "scheduler", "num_candidates", "guidance_scale",
    "guidance_interval", "guidance", "batch_size",
)  # fmt: skip
"""The parts that all generations share."""
