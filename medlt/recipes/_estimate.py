"""A first estimate of the training time of a run, noted before its first training.

A few steps of each training are made on random numbers of the right shapes, in a temporary folder. The time of one step
times the number of steps is the estimate. Nothing of these trials is kept, and no row of a patient is read.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlt import config as configs
from medlt.classify.sets import TrainingSet
from medlt.classify.train import fit_classifier
from medlt.diffusion.codec import load_codec
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.diffusion.train_codec import train_codec
from medlt.progress import duration
from medlt.recipes._checks import objective, training
from medlt.recipes._codec import NOT_OPTIONS
from medlt.recipes._cohort import RealRows
from medlt.recipes._denoiser import fresh_network
from medlt.recipes._privacy import PrivateTraining
from medlt.recipes._setup import RunFolder
from medlt.rng import torch_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.phases import TrainingSetup, interact
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

STEPS = 4
"""Steps of a trial. Their median leaves out the checkpoint at the last one."""
FEWEST = 100
"""A part with fewer steps is not estimated: it is over in a moment."""
Trial = Callable[[Runtime, Store, int], object]
"""Function (runtime, store, steps) that trains for so many steps and reports each to the runtime's progress."""


@dataclass(frozen=True)
class Part:
    """A part of a run: its stage, its number of steps, and how long one step takes, s."""

    stage: str
    steps: int
    seconds_a_step: Callable[[], float]


def note_training_time(run: RunFolder[Any], parts: list[Part]) -> None:
    """Note how long the parts will train. Parts that an earlier call began, or that are short, are left out."""
    begun = run.summary().get("seconds", {})
    if seconds := training_seconds([one for one in parts if one.stage not in begun and one.steps >= FEWEST]):
        run.progress.note(_sentence(seconds, run.config.device))


def training_seconds(parts: Sequence[Part]) -> dict[str, float]:
    """Return how long each part trains, s. A part that cannot be tried is left out: it will report why itself."""
    seconds: dict[str, float] = {}
    for part in parts:
        with suppress(InputError):
            seconds[part.stage] = part.seconds_a_step() * part.steps
    return seconds


def _sentence(seconds: Mapping[str, float], device: str) -> str:
    """Return the line of the log."""
    parts = ", ".join(f"{stage} {duration(one)}" for stage, one in seconds.items())
    return (
        f"estimate: about {duration(sum(seconds.values()))} of training on {device} ({parts}), by the time of "
        f"{STEPS} steps of each; parts that are trained already take no time"
    )


def generator_parts(run: RunFolder[configs.RunConfig], cohort: RealRows) -> list[Part]:
    """Return the parts that images are made with: codec, sparse code, denoiser and verifiers."""
    config, rows = run.config, len(cohort.train.rows)
    parts = []
    if isinstance(config.codec, configs.TrainedCodec):
        parts.append(Part("codec", config.codec.steps, lambda: _codec(run, cohort)))
    if not config.data_independent:
        parts.append(_classifiers(run, cohort, "verifiers", config.checks.folds * config.classifier.steps))
    if config.method.kind == "fusion" and config.privacy is None:
        parts.append(Part("sparse", _sparse_steps(config.sparse, rows), lambda: _sparse(run, cohort)))
    pixels_alone = isinstance(config.method, configs.Recompose) and not config.method.strength
    if isinstance(config.denoiser, configs.SmallDenoiser) and config.denoiser.train == "full" and not pixels_alone:
        parts.append(Part("denoiser", config.denoiser.steps, lambda: _denoiser(run, cohort)))
    return parts


def arms_part(run: RunFolder[Any], cohort: RealRows, real: int, added: int) -> list[Part]:
    """Return the parts of a comparison of so many arms of real rows and of so many with added rows, controls included.

    Arms with added rows are trained with every share and weight that validation chooses from. With a pilot, which
    decides the number of steps, the steps are the most that the config allows.
    """
    chosen = run.config.evaluation
    if chosen is None:
        return []
    trainings = (real + added * len(chosen.fractions) * len(chosen.weights)) * chosen.seeds
    if isinstance(chosen.steps, int):
        return [_classifiers(run, cohort, "arms", trainings * chosen.steps, chosen.workers)]
    whole = _classifiers(run, cohort, "arms", trainings * chosen.max_steps, chosen.workers)
    return [_classifiers(run, cohort, "pilot", chosen.max_steps), whole]


def _classifiers(run: RunFolder[Any], cohort: RealRows, stage: str, steps: int, workers: int = 1) -> Part:
    """Return a part of so many steps of the config's classifier, shared by `workers` processes."""
    return Part(stage, -(-steps // workers), lambda: _classifier(run, cohort))


def _seconds_a_step(trial: Trial, runtime: Runtime) -> float:
    """Return the median time of a step, s."""
    at: list[float] = []
    counting = replace(runtime, progress=lambda stage, done, total: at.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as place:
        trial(counting, Store(Path(place)), STEPS)
    return float(median(np.diff(at)))


def _random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch_generator("estimate"))


def _labels(cohort: RealRows, rows: int) -> np.ndarray:
    """Return labels [rows,K] with one finding in each row."""
    count = len(cohort.findings)
    return np.eye(count, dtype=np.float32)[np.arange(rows) % count]


def _private(run: RunFolder[configs.RunConfig], cohort: RealRows) -> PrivateTraining | None:
    """Return the private training of a private run, kept out of its ledger."""
    return None if run.config.privacy is None else PrivateTraining(run, cohort, kept=False)


def _names(cohort: RealRows) -> list[str]:
    """Return as many names as there are train rows; a private step draws from so many."""
    return [f"row-{number}" for number in range(len(cohort.train.rows))]


class _Images:
    """As many images [1,S,S] in [0,1] as there are train rows, all the same."""

    def __init__(self, size: int, count: int) -> None:
        self.image, self.count = _random(1, size, size), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.image}


def _codec(run: RunFolder[configs.RunConfig], cohort: RealRows) -> float:
    chosen, names = run.config.codec, _names(cohort)
    assert isinstance(chosen, configs.TrainedCodec)
    options: dict[str, Any] = chosen.model_dump(exclude={"steps", *NOT_OPTIONS}) | {"contents": "estimate"}
    if (private := _private(run, cohort)) is not None:
        options |= {"private": private, "patients": names}
    images = _Images(run.config.size, len(names))

    def trial(runtime: Runtime, store: Store, steps: int) -> object:
        return train_codec(images, runtime=runtime, store=store, steps=steps, **options)

    return _seconds_a_step(trial, run.runtime.at("fp32"))


def latent_shape(config: configs.RunConfig) -> tuple[int, int, int]:
    """Return channels, height and width of a latent. Raises InputError for the codec of a plug-in."""
    if isinstance(config.codec, configs.TrainedCodec):
        channels, factor = config.codec.channels, 2 ** (config.codec.levels - 1)
    elif isinstance(config.codec, configs.FolderCodec):
        codec = load_codec(config.codec.path, "cpu")
        channels, factor = codec.channels, codec.factor
    elif isinstance(config.codec, configs.PixelsConfig):
        channels, factor = config.codec.patch**2, config.codec.patch
    else:
        raise InputError("the latents of a plug-in's codec are not known before it is built")
    return channels, config.size // factor, config.size // factor


def _denoiser(run: RunFolder[configs.RunConfig], cohort: RealRows) -> float:
    chosen, names = run.config.denoiser, _names(cohort)
    latent = _random(*latent_shape(run.config))
    data = LabelledLatents(
        lambda uids: torch.stack([latent] * len(uids)), names, _labels(cohort, len(names)), "estimate", patients=names
    )
    net = fresh_network(run.config, data, run.config.seed)

    def trial(runtime: Runtime, store: Store, steps: int) -> object:
        few = replace(training(chosen), steps=steps)
        return train_backbone(net.backbone(), data, folder=store.root / "denoiser", training=few, runtime=runtime,
                              objective=objective(chosen), private=_private(run, cohort))  # fmt: skip

    return _seconds_a_step(trial, run.runtime.at(chosen.precision))


def _classifier(run: RunFolder[Any], cohort: RealRows) -> float:
    chosen = run.config.classifier
    rows = 2 * chosen.batch_size
    pixels = (_random(rows, 1, chosen.size, chosen.size) * 255).to(torch.uint8)
    data = TrainingSet(pixels, _labels(cohort, rows), np.ones(rows, np.float32), tuple(str(row) for row in range(rows)))
    options = chosen.model_dump(exclude={"size", "steps", "evaluate_every"})

    def trial(runtime: Runtime, store: Store, steps: int) -> object:
        return fit_classifier(data, data, runtime=runtime, store=store, steps=steps, evaluate_every=steps, **options)

    return _seconds_a_step(trial, run.runtime)


def _sparse_steps(chosen: configs.SparseConfig, rows: int) -> int:
    """Return the number of steps of all generations."""
    return chosen.epochs * max(1, rows // chosen.batch_size)


def _sparse(run: RunFolder[configs.RunConfig], cohort: RealRows) -> float:
    """Return the time of a step of interaction, the longest of the three phases: an epoch of one batch."""
    chosen, shape = run.config.sparse, latent_shape(run.config)
    latents, labels = _random(chosen.batch_size, *shape), torch.from_numpy(_labels(cohort, chosen.batch_size))
    setup = TrainingSetup(
        latents, labels, chosen.batch_size, chosen.learning_rate, chosen.weight_decay, chosen.classification_weight,
        run.runtime.at("fp32"),
    )  # fmt: skip
    code = chosen.model_dump(include={"groups", "vocabulary", "temperature", "width"})
    coder = SimplicialCoder(shape[0], len(cohort.findings), seed=run.config.seed, **code)
    at: list[float] = []

    def score() -> float:
        at.append(time.perf_counter())
        return 0.0

    interact(setup, coder, STEPS, STEPS, 0, score)
    return float(median(np.diff(at)))
