"""Train one image classifier, in the same way for every arm of a comparison and for every verifier.

An arm is a choice of ClassifierSettings: task, loss, training strategy, sampling, mixup, augmentation. All arms make
the same number of gradient steps with one learning rate schedule (linear warm-up, cosine to 0, in each stage) and one
rule of early stopping (macro AP on the validation set, in both tasks). Step s is a function of (seed, s), so two arms
with one seed start from equal weights and see equal real images, except in the slots that an arm gives to added rows or
samples by class. The weights that are kept are an exponential moving average, those of the last stage with the best
macro AP. Each stage is one call of `medlt.training.loop.fit`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medlt import files
from medlt.classify.batches import Batches
from medlt.classify.classifier import Classifier, Clock, Pace, in_precision
from medlt.classify.frozen import feature_rows, stored_features
from medlt.classify.heads import best_tau, classifier_network, redraw, tau_normalise
from medlt.classify.losses import Loss, entries
from medlt.classify.losses import loss as named_loss
from medlt.classify.mixup import ClassifierBatch
from medlt.classify.pretrained import require_size
from medlt.classify.saved import load_classifier, write_classifier
from medlt.classify.sets import TrainingSet, as_distributions, require_one_label
from medlt.classify.settings import ClassifierSettings, OptimizerSettings
from medlt.classify.training_strategies import Stage
from medlt.metrics.ranking import macro_average_precision
from medlt.rng import seed_of
from medlt.store import Store
from medlt.training import loop
from medlt.training.batches import StepBatches
from medlt.training.checkpoint import State
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart
from medlt.types import InputError

__all__ = [
    "Classifier",
    "ClassifierSettings",
    "OptimizerSettings",
    "Pace",
    "TrainingSet",
    "fit_classifier",
    "load_classifier",
    "require_trainable",
]

FORMAT = 5  # part of the key: increase it if the same settings would train other weights
HEAD_RATE = 10.0  # times the learning rate where only a fresh head is trained: see medlt.classify.training_strategies


def fit_classifier(
    real: TrainingSet,
    val: TrainingSet,
    *,
    added: TrainingSet | None = None,
    runtime: Runtime,
    store: Store,
    name: str = "classifier",
    **settings: Any,
) -> Classifier:
    """Train on `real` and `added` rows by the training strategy, and keep the best weights on `val`.

    settings: the fields of ClassifierSettings; the seed is the runtime's, and `name` labels the progress. The store
    keeps the classifier under data, settings and seed; only a classifier trained in this call has a `pace`. It computes
    in the settings' precision with weights in float32, whatever the runtime's precision. On frozen pretrained weights
    the head alone is trained and kept, on features that are computed once and stored. Raises InputError for unknown
    names, sets that do not fit each other, rows without exactly one positive in the single-label task (of added rows:
    without a positive label; soft labels are divided by their sum), a training strategy that needs added rows and has
    none, and weights that do not fit; TypeError for an unknown setting.
    """
    chosen, runtime = ClassifierSettings(**settings), runtime.at("fp32")
    added = added if added is not None and len(added) else None
    if added is not None and chosen.task == "single-label":
        added = as_distributions(added)
    require_trainable(real, val, added, chosen)
    require_size(chosen.network, chosen.pretrained, int(real.images.shape[-1]))
    device = str(runtime.torch_device(name))
    key, pace = _key(real, val, added, chosen, runtime.seed), list[Pace | None]([None])

    def build(folder: Path) -> None:
        if not chosen.tau_norm:
            pace[0] = _train(_Training(real, val, added, chosen, runtime, name, folder, key, store))
            return
        options = asdict(replace(chosen, tau_norm=False))
        plain = fit_classifier(real, val, added=added, runtime=runtime, store=store, name=name, **options)
        pace[0] = plain.pace
        _normalise(plain, val, chosen, folder, store)

    made = store.make("classifier", key, build, joint=True)
    return replace(load_classifier(made.folder, device, chosen.pretrained), pace=pace[0])


def require_trainable(
    real: TrainingSet, val: TrainingSet, added: TrainingSet | None, settings: ClassifierSettings
) -> None:
    """Raise InputError if the sets do not fit the settings or each other, as `fit_classifier`."""
    if not len(real):
        raise InputError("there is no train row; check the column split")
    widths = {len(rows.labels[0]) for rows in (real, val, added) if rows is not None and len(rows)}
    sizes = {tuple(rows.images.shape[-2:]) for rows in (real, added) if rows is not None}
    if len(widths) > 1 or len(sizes) > 1:
        shapes = f"findings {sorted(widths)}, image sizes {sorted(sizes)}"
        raise InputError(
            f"train, validation and added rows differ: {shapes}; load them with the same findings and size"
        )
    if added is None and any(stage.rows == "added" for stage in settings.stages()):
        raise InputError(f"training_strategy {settings.training_strategy} needs added rows; give the arm a source")
    if settings.task == "single-label":
        require_one_label(real, "train")
        require_one_label(val, "validation")
        if added is not None:
            require_one_label(as_distributions(added), "added", soft=True)


def _key(
    real: TrainingSet, val: TrainingSet, added: TrainingSet | None, settings: ClassifierSettings, seed: int
) -> dict[str, Any]:
    """Return everything that decides the weights."""
    sets = {"real": real.digest(), "val": val.digest(), "added": added.digest() if added is not None else None}
    return {"format": FORMAT, "settings": settings.identity(), "seed": seed, **sets}


@dataclass
class _Training:
    """The state of one training: its network, data and counters."""

    real: TrainingSet
    val: TrainingSet
    added: TrainingSet | None
    settings: ClassifierSettings
    runtime: Runtime
    name: str
    folder: Path
    key: dict[str, Any]
    store: Store

    def __post_init__(self) -> None:
        self.clock, self.rows, self.done = Clock(), Counter[str](), list[int]()
        self.history: list[dict[str, Any]] = []
        self.device = self.runtime.torch_device(self.name)
        self.labels = torch.from_numpy(self.real.labels).to(self.device)
        chosen, seed = self.settings, seed_of(self.runtime.seed, "weights")
        self.size, pretrained = int(self.real.images.shape[-1]), chosen.pretrained
        spec = pretrained.spec if pretrained else None
        self.net = classifier_network(chosen.network, chosen.loss, self.real.labels.shape[1], seed, spec)
        if pretrained:
            pretrained.load(self.net)
        if chosen.frozen:
            self._freeze()

    @property
    def classifier(self) -> Classifier:
        """Return the network as it is now."""
        return Classifier(self.net, self.size, {"settings": self.key["settings"]})

    def _freeze(self) -> None:
        """Replace the images of all sets by the features of the network."""
        self.net.to(self.device)
        progress = lambda done, total: self.runtime.progress(f"{self.name} features", done, total)  # noqa: E731
        rows = partial(feature_rows, self.classifier, store=self.store, progress=progress)
        self.real, self.val = rows(self.real), rows(self.val)
        self.added = None if self.added is None else rows(self.added)

    def run(self, number: int, stage: Stage) -> State:
        """Train one stage; afterwards `net` has its best weights."""
        chosen, batches = self.settings, self.batches(stage)
        loss = named_loss(chosen.loss, self.labels, chosen.task, stage.reweighted)
        alone = stage.head or chosen.frozen
        below = nn.Identity() if chosen.frozen else self.net.features if stage.head else None
        self.net.to(self.device).requires_grad_(True)
        if stage.head:
            redraw(self.net.head, seed_of(self.runtime.seed, "head"))
            self.net.eval()

        def loss_of(network: nn.Module, step: int, part: BatchPart) -> Tensor:
            with self.clock.on("waiting"):
                batch = prefetched(stage.start + step)
            self.clock.images += len(batch.labels) // part.of
            known = part.share(entries(batch.labels, chosen.task))
            return _loss(network, below, loss, _taken(batch, part, self.device), chosen.precision) * known

        with StepBatches(batches, stage.start + stage.steps) as prefetched:
            state = loop.fit(
                self.net.head if alone else self.net,
                loss_of,
                chosen.training(stage.steps, HEAD_RATE if alone else 1.0),
                runtime=replace(self.runtime, progress=self.progress(stage)),
                folder=self.folder / "checkpoint" / f"stage_{number}",
                key=files.digest(self.key, number),
                name=self.name,
                evaluate=self.evaluate,
            )
        self.note(number, stage, state, batches)
        return state

    def batches(self, stage: Stage) -> Batches:
        """Return the batches of a stage."""
        names = ("batch_size", "synthetic_fraction", "augment", "mixup", "mixup_alpha")
        more = {name: getattr(self.settings, name) for name in names}
        return Batches(self.real, self.added, stage, seed=self.runtime.seed, device=self.device, **more)

    def progress(self, stage: Stage) -> Any:
        """Return the progress of a stage as a part of the whole training."""
        report, steps = self.runtime.progress, self.settings.steps
        return lambda name, done, total: report(name, stage.start + done, steps)

    def evaluate(self, network: nn.Module) -> float:
        """Return macro AP on the validation set, NaN without a positive; `network` is the network or its head."""
        with self.clock.on("evaluating"):
            return _macro_ap(self.classifier, self.val)

    def note(self, number: int, stage: Stage, state: State, batches: Batches) -> None:
        """Record a finished stage."""
        self.done.append(state.step)
        self.rows.update(batches.count(state.step))
        for step, value in state.validation.items():
            score = None if math.isnan(value) else value
            at = {"stage": number, "step": stage.start + step}
            self.history.append(at | {"loss": state.losses[step - 1], "val_macro_ap": score})


def _train(training: _Training) -> Pace:
    """Train all stages, and write weights and record."""
    stages = training.settings.stages()
    best = [stage.start + training.run(number, stage).best.step for number, stage in enumerate(stages)][-1]
    record = _record(training) | {"best_step": best, "history": training.history}
    record |= {"steps_done": training.done, "rows_seen": dict(training.rows)}
    write_classifier(training.classifier, training.folder, record)
    return training.clock.pace()


def _taken(batch: ClassifierBatch, part: BatchPart, device: torch.device) -> ClassifierBatch:
    """Return a part of a batch, on the device."""
    return ClassifierBatch(part.take(batch.images), part.take(batch.labels), part.take(batch.weights)).to(device)


def _loss(network: nn.Module, below: Any, loss: Loss, batch: ClassifierBatch, precision: str) -> Tensor:
    """Return the loss of one batch with its graph; where only the head trains, `below` makes its features."""
    if below is None:
        return loss(in_precision(network, batch.images, precision), batch.labels, batch.weights)
    with torch.no_grad():
        features = in_precision(below, batch.images, precision)
    return loss(network(features), batch.labels, batch.weights)


def _macro_ap(classifier: Classifier, val: TrainingSet) -> float:
    """Return macro AP on the validation set; NaN without a positive. Rows of features go through the head alone."""
    scores = classifier.predict_from(val.images) if classifier.frozen else classifier.predict(val.images)
    return macro_average_precision(val.labels, scores.numpy())


def _normalise(plain: Classifier, val: TrainingSet, settings: ClassifierSettings, folder: Path, store: Store) -> None:
    """Write the tau-normalised twin of a classifier. The multi-label twin does not change: see medlt.classify.heads."""
    tau = None
    if settings.task == "single-label":
        features = stored_features(plain, val.images, store) if plain.frozen else plain.features(val.images)
        tau = best_tau(plain.net.head, features, val.labels)
        tau_normalise(plain.net.head, tau)
    write_classifier(plain, folder, plain.record | {"settings": settings.identity(), "tau": tau})


def _record(training: _Training) -> dict[str, Any]:
    """Return settings, seed, counts and digests. It has no times, so a rerun writes the same bytes."""
    real, added, key = training.real, training.added, training.key
    return {
        "settings": key["settings"],
        "seed": key["seed"],
        "size": training.size,
        "positive": [float(n) for n in np.nansum(real.labels, axis=0)],
        "train_digest": key["real"],
        "train_rows": len(real),
        "added_digest": key["added"],
        "added_rows": len(added) if added is not None else 0,
        "val_digest": key["val"],
    }
