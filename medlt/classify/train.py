"""Train one image classifier, the same way for every arm of a comparison and for every judge.

An arm is a choice of Settings: task, loss, course, sampling, mixup, augmentation. All arms make the same number of
gradient steps under one rule of schedule (linear warm-up, cosine to 0, for each stage of the course) and one rule of
early stopping (macro AP on the validation set, of both tasks); step s is a function of (seed, s), so two arms with one
seed start from equal weights and see equal real images but for the slots an arm gives to added ones or samples by
class. The weights that are kept are an exponential moving average, those of the last stage with the best macro AP.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from medlt import files
from medlt.chance import seed_of
from medlt.classify.augment import augmentation
from medlt.classify.batches import Ahead, Batches
from medlt.classify.classifier import Classifier, Pace, half, standardised
from medlt.classify.courses import Stage, stages
from medlt.classify.heads import best_tau, classifier_network, redraw, tau_normalise
from medlt.classify.losses import Loss, known_loss
from medlt.classify.losses import loss as named_loss
from medlt.classify.mixup import MIXUPS, Batch
from medlt.classify.networks import Network
from medlt.classify.sets import TrainingSet, require_one_label
from medlt.classify.steps import Best, Clock, Schedule, learning_rate, optimise
from medlt.metrics.ranking import macro_average_precision
from medlt.types import InputError

__all__ = [
    "Best",
    "Classifier",
    "Pace",
    "Schedule",
    "Settings",
    "TrainingSet",
    "fit",
    "learning_rate",
    "load",
    "optimise",
    "require_trainable",
    "standardised",
]

FORMAT = 3  # part of the cache key: raise it when the same settings would train other weights
HEAD_RATE = 10.0  # times the learning rate where a fresh head alone is trained: see medlt.classify.courses
Tell = Callable[[int], Any]


@dataclass(frozen=True)
class Settings(Schedule):
    """What a training is, beside its data. Raises InputError for unknown names and pairs that do not go together.

    task: multi-label or single-label; loss: see medlt.classify.losses; course, last_share (of its last stage; None:
    the course's own), sampling: see medlt.classify.courses; mixup, mixup_alpha: see medlt.classify.mixup; augment:
    none, light or monai; tau_norm: see medlt.classify.heads; mix: probability that a slot holds an added row.
    """

    network: str = "small"
    mix: float = 0.2
    augment: str | bool = "light"
    task: str = "multi-label"
    course: str = "one"
    last_share: float | None = None
    sampling: str = "instance"
    mixup: str = "none"
    mixup_alpha: float = 0.2
    tau_norm: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.augment, bool):
            object.__setattr__(self, "augment", "light" if self.augment else "none")
        known_loss(self.loss, self.task)
        augmentation(str(self.augment))
        self.stages()
        if self.mixup not in MIXUPS:
            raise InputError(f"no mixup named {self.mixup!r}; choose one of {', '.join(MIXUPS)}")
        if self.mixup_alpha <= 0 or not 0 <= self.mix <= 1:
            raise InputError(f"mix {self.mix} must be in [0,1], mixup_alpha {self.mixup_alpha} above 0")
        if self.tau_norm and self.loss == "ldam":
            raise InputError("tau_norm changes nothing in the head of cosines of loss ldam; leave one of them out")

    def stages(self) -> tuple[Stage, ...]:
        """The stages of the course."""
        return stages(self.course, self.steps, self.sampling, self.last_share)


def fit(
    real: TrainingSet,
    val: TrainingSet,
    *,
    folder: Path,
    added: TrainingSet | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    name: str = "classifier",
    device: str = "cpu",
    **settings: Any,
) -> Classifier:
    """Train on `real` and `added` rows as the course says; keep the best on `val`.

    settings: the fields of Settings. The result is kept in `folder` under a digest of data and settings and read back
    when it is there already; only one trained now has a `pace`. Raises InputError for unknown names, sets that do not
    fit each other, rows without exactly one positive in the single-label task (of added rows: labels that do not sum
    to 1), and a course that needs added rows and has none; a TypeError on an unknown setting.
    """
    chosen = Settings(**settings)
    added = added if added is not None and len(added) else None
    require_trainable(real, val, added, chosen)
    key = _key(real, val, added, chosen, device)
    place, pace = Path(folder) / f"classifier-{key}.json", None
    if not place.exists() and chosen.tau_norm:
        options = asdict(replace(chosen, tau_norm=False))
        plain = fit(real, val, folder=folder, added=added, progress=progress, name=name, device=device, **options)
        pace = plain.pace
        _normalise(plain, val, chosen, place)
    elif not place.exists():
        tell = progress or (lambda *_: None)
        pace = _train(real, val, added, chosen, place, lambda done: tell(name, done, chosen.steps), device)
    return replace(load(place, device), pace=pace)


def require_trainable(real: TrainingSet, val: TrainingSet, added: TrainingSet | None, settings: Settings) -> None:
    """Raises InputError where the sets do not fit the settings or each other, as `fit` does."""
    if not len(real):
        raise InputError("there is no train row; check the split")
    widths = {len(rows.labels[0]) for rows in (real, val, added) if rows is not None and len(rows)}
    sizes = {tuple(rows.images.shape[-2:]) for rows in (real, added) if rows is not None}
    if len(widths) > 1 or len(sizes) > 1:
        told = f"findings {sorted(widths)}, image sizes {sorted(sizes)}"
        raise InputError(f"train, validation and added rows must be alike, got {told}; load them alike")
    if added is None and any(stage.rows == "added" for stage in settings.stages()):
        raise InputError(f"course {settings.course!r} needs added rows and there are none; give a source of images")
    if settings.task == "single-label":
        require_one_label(real, "train")
        require_one_label(val, "validation")
        if added is not None:
            require_one_label(added, "added", soft=True)


def _key(real: TrainingSet, val: TrainingSet, added: TrainingSet | None, settings: Settings, device: str) -> str:
    extra = added.digest() if added is not None else ""
    return files.digest(FORMAT, real.digest(), val.digest(), extra, asdict(settings), device, torch.get_num_threads())


def load(place: Path, device: str = "cpu") -> Classifier:
    """Read a classifier back from its JSON record and the weights beside it. Raises InputError for damaged ones."""
    try:
        record, weights = json.loads(place.read_text()), files.read_tensors(place.with_suffix(".safetensors"))
    except (ValueError, FileNotFoundError, SafetensorError):
        raise InputError(f"{place}: it or its weights are damaged; remove it, and it is trained again") from None
    settings = record["settings"]
    net = classifier_network(settings["network"], settings["loss"], len(record["positive"]))
    net.load_state_dict(weights)
    return Classifier(net.to(device).eval(), record["size"], record)


@dataclass
class _Training:
    """One training under way: its network, data, and what was counted so far."""

    net: Network
    real: TrainingSet
    val: TrainingSet
    added: TrainingSet | None
    settings: Settings
    device: str

    def __post_init__(self) -> None:
        self.clock, self.rows, self.done = Clock(), Counter(real=0, added=0), list[int]()
        self.history: list[dict[str, Any]] = []
        self.labels = torch.from_numpy(self.real.labels).to(self.device)

    def run(self, number: int, stage: Stage, tell: Tell) -> Best:
        """One stage; `net` has its best weights afterwards."""
        chosen, best = self.settings, Best(self.settings.patience)
        loss = named_loss(chosen.loss, self.labels, chosen.task, stage.reweighted)
        if stage.head:
            redraw(self.net.head, seed_of(chosen.seed, "head"))
            self.net.eval()
        batches = _batches(self.real, self.added, stage, chosen, self.device)

        def see(step: int, value: float, averaged: nn.Module) -> bool:
            with self.clock.on("evaluating"):
                whole: Any = Network(self.net.body, averaged) if stage.head else averaged  # type: ignore[arg-type]
                best.rank(stage.start + step, value, whole, _macro_ap(whole, self.val, chosen.task))
            return best.stale

        def step_loss(step: int) -> Tensor:
            with self.clock.on("waiting"):
                batch = ahead(stage.start + step)
            self.rows.update(added=batch.added, real=len(batch.labels) - batch.added)
            done[0] = step + 1
            return _loss(self.net, loss, batch.to(self.labels.device), stage.head)

        done = [0]
        with Ahead(batches, stage.start + stage.steps) as ahead:
            ema = chosen.ema ** (chosen.steps / stage.steps)
            rate = chosen.learning_rate * (HEAD_RATE if stage.head else 1)
            schedule = replace(chosen, course="one", steps=stage.steps, ema=ema, learning_rate=rate)
            moving = self.net.head if stage.head else self.net
            optimise(moving, schedule, step_loss, see, lambda n: tell(stage.start + n))
        self.net.load_state_dict(best.weights)
        self.done.append(done[0])
        self.history += [entry | {"stage": number} for entry in best.history]
        return best


def _batches(
    real: TrainingSet, added: TrainingSet | None, stage: Stage, settings: Settings, device: str = "cpu"
) -> Batches:
    names = ("seed", "batch", "mix", "augment", "mixup", "mixup_alpha")
    return Batches(real, added, stage, device=device, **{name: getattr(settings, name) for name in names})


def _train(
    real: TrainingSet,
    val: TrainingSet,
    added: TrainingSet | None,
    settings: Settings,
    place: Path,
    tell: Tell,
    device: str,
) -> Pace:
    """All stages. Writes the weights, then the record that names them: the record's presence means both are whole."""
    seed = seed_of(settings.seed, "weights")
    net = classifier_network(settings.network, settings.loss, real.labels.shape[1], seed).to(device)
    training = _Training(net, real, val, added, settings, device)
    for number, stage in enumerate(settings.stages()):
        best = training.run(number, stage, tell)
    record = _record(real, val, added, settings) | {"best_step": best.step, "history": training.history}
    record |= {"steps_done": training.done, "rows_seen": dict(training.rows)}
    files.write_tensors(place.with_suffix(".safetensors"), best.weights)
    files.write_json(place, record)
    return training.clock.pace(sum(training.rows.values()))


def _loss(net: Network, loss: Loss, batch: Batch, head: bool) -> Tensor:
    """The loss of one batch, with its graph; the graph begins at the head where that alone moves."""
    with torch.set_grad_enabled(not head):
        logits = half(net.features if head else net, batch.images)
    return loss(net.head(logits) if head else logits, batch.labels, batch.weights)


def _macro_ap(net: Network, val: TrainingSet, task: str) -> float:
    """Macro AP on the validation set; NaN without a positive."""
    record = {"settings": {"task": task}}
    scores = Classifier(net, val.images.shape[-1], record).predict(val.images)
    return macro_average_precision(val.labels, scores.numpy())


def _normalise(plain: Classifier, val: TrainingSet, settings: Settings, place: Path) -> None:
    """Write the tau-normalised twin of a classifier. The multi-label one is as it was: see medlt.classify.heads."""
    tau = None
    if settings.task == "single-label":
        tau = best_tau(plain.net.head, plain.features(val.images), val.labels)
        tau_normalise(plain.net.head, tau)
    files.write_tensors(place.with_suffix(".safetensors"), plain.net.state_dict())
    files.write_json(place, plain.record | {"settings": asdict(settings), "tau": tau})


def _record(real: TrainingSet, val: TrainingSet, added: TrainingSet | None, settings: Settings) -> dict[str, Any]:
    """What was trained on what. No times: a rerun gives the same bytes."""
    return {
        "settings": asdict(settings),
        "size": int(real.images.shape[-1]),
        "positive": [float(n) for n in np.nansum(real.labels, axis=0)],
        "train_digest": real.digest(),
        "train_rows": len(real),
        "added_digest": added.digest() if added is not None else None,
        "added_rows": len(added) if added is not None else 0,
        "val_digest": val.digest(),
    }
