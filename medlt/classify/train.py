"""Train one image classifier, the same way for every arm of a comparison and for every judge.

Same steps, same schedule (linear warm-up, cosine to 0), same loss weights; step s is a function of (seed, s), so two
arms with one seed start from equal weights and see equal real images but for the slots an arm gives to added ones.
The weights that are kept are an exponential moving average, those with the best macro AP on the validation set.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medlt import files
from medlt.chance import batch_indices, generator, rng, seed_of
from medlt.classify.augment import augment as move
from medlt.classify.losses import Loss
from medlt.classify.losses import loss as named_loss
from medlt.classify.networks import Network
from medlt.classify.networks import network as named_network
from medlt.classify.sets import TrainingSet, to_uint8
from medlt.metrics.ranking import macro_average_precision

__all__ = ["Classifier", "Settings", "TrainingSet", "fit"]

log = logging.getLogger(__name__)
FORMAT = 2  # part of the cache key: raise it when the same settings would train other weights


@dataclass(frozen=True)
class Schedule:
    """How weights move and when they are looked at, whatever the network sees."""

    loss: str = "balanced"
    steps: int = 400
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    evaluate_every: int = 50
    patience: int = 8
    seed: int = 0
    warm_up: float = field(default=0.1, metadata={"unit": "share of steps"})
    ema: float = 0.98


@dataclass(frozen=True)
class Settings(Schedule):
    """What a training is, beside its data."""

    network: str = "small"
    mix: float = 0.2
    augment: bool = True


@dataclass(frozen=True)
class Classifier:
    """A trained network on images of side `size`. `record` holds settings, history and digests, as written to JSON."""

    net: Network
    size: int
    record: dict[str, Any]

    def __call__(self, images: Tensor) -> Tensor:
        return self.predict(images)

    @torch.no_grad()
    def predict(self, images: Tensor, chunk: int = 64) -> Tensor:
        """images uint8 or float in [0,1], [B,1,H,W] -> probabilities float32 [B,K].

        Floats are rounded to 8 bit first, and other sizes brought to `size` by area, as a written file would be.
        """
        return self._in_chunks(self.net, images, chunk, self.net.head.out_features).sigmoid()

    @torch.no_grad()
    def features(self, images: Tensor, chunk: int = 64) -> Tensor:
        """What the head sees of images as in `predict`: float32 [B,D]."""
        return self._in_chunks(self.net.features, images, chunk, self.net.head.in_features)

    def _in_chunks(self, fn: Callable[[Tensor], Tensor], images: Tensor, chunk: int, width: int) -> Tensor:
        self.net.eval()
        place = next(self.net.parameters()).device
        parts = [
            _half(fn, _resized(to_uint8(images[i : i + chunk]).to(place), self.size)).cpu()
            for i in range(0, len(images), chunk)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, width)


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 [B,1,H,W] -> float [B,1,size,size] in [0,1]."""
    images = images.float() / 255
    return images if images.shape[-2:] == (size, size) else F.interpolate(images, (size, size), mode="area")


def standardised(images: Tensor) -> Tensor:
    """Images [B,1,S,S] in [0,1] as the networks take them, channels last."""
    return ((images - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)


def _half(fn: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """float32 [B,...] of images [B,1,S,S] in [0,1], computed in bfloat16: twice as fast on a CPU."""
    with torch.autocast(images.device.type, torch.bfloat16):
        return fn(standardised(images)).float()


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
    """Train on `real`, with each slot of a batch given to `added` with probability `mix`; keep the best on `val`.

    settings: the fields of Settings. The result is kept in `folder` under a digest of data and settings and read back
    when it is there already. Raises InputError on unknown names; a TypeError on an unknown setting.
    """
    chosen = Settings(**settings)
    key = _key(real, val, added, chosen, device)
    place = Path(folder) / f"classifier-{key}.json"
    if not place.exists():
        _train(real, val, added, chosen, place, lambda done: progress and progress(name, done, chosen.steps), device)
    return load(place, device)


def _key(real: TrainingSet, val: TrainingSet, added: TrainingSet | None, settings: Settings, device: str) -> str:
    extra = added.digest() if added is not None and len(added) else ""
    return files.digest(FORMAT, real.digest(), val.digest(), extra, asdict(settings), device, torch.get_num_threads())


def load(place: Path, device: str = "cpu") -> Classifier:
    """Read a classifier back from its JSON record and the weights beside it."""
    record = json.loads(place.read_text())
    net = named_network(record["settings"]["network"], len(record["positive"]))
    net.load_state_dict(files.read_tensors(place.with_suffix(".safetensors")))
    return Classifier(net.to(device).eval(), record["size"], record)


def learning_rate(step: int, steps: int, peak: float, warm_up: float) -> float:
    """Linear from 0 to `peak` over the first `warm_up` share of steps, then a half cosine to 0."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _batch(
    real: TrainingSet, added: TrainingSet | None, settings: Settings, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """images float [B,1,S,S], labels [B,K], weights [B] of one step: a function of (seed, step) and the data."""
    key, size = settings.seed, settings.batch
    rows = batch_indices(len(real), size, step, key, "real")
    images, labels, weights = real.images[torch.from_numpy(rows)], real.labels[rows], real.weights[rows]
    if added is not None and len(added):
        slots = np.flatnonzero(rng(key, "mix", step).random(size) < settings.mix)
        other = batch_indices(len(added), size, step, key, "added")[slots]
        images[torch.from_numpy(slots)] = added.images[torch.from_numpy(other)]
        labels[slots], weights[slots] = added.labels[other], added.weights[other]
    floats = images.float() / 255
    if settings.augment:
        floats = move(floats, generator(key, "augment", step))
    return floats, torch.from_numpy(labels), torch.from_numpy(weights)


def _train(
    real: TrainingSet,
    val: TrainingSet,
    added: TrainingSet | None,
    settings: Settings,
    place: Path,
    tell: Callable[[int], Any],
    device: str,
) -> None:
    """The loop. Writes the weights, then the record that names them: the record's presence means both are whole."""
    findings = real.labels.shape[1]
    loss = named_loss(settings.loss, torch.from_numpy(real.labels).to(device))
    net = named_network(settings.network, findings, seed_of(settings.seed, "weights")).to(device)
    best = Best(settings.patience)

    def see(step: int, value: float, averaged: nn.Module) -> bool:
        best.see(step, value, cast(Network, averaged), val)
        return best.stale

    optimise(net, settings, lambda step: _step_loss(net, loss, _batch(real, added, settings, step)), see, tell)
    record = _record(real, val, added, settings) | {"best_step": best.step, "history": best.history}
    files.write_tensors(place.with_suffix(".safetensors"), best.weights)
    files.write_json(place, record)


def _step_loss(net: Network, loss: Loss, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The loss of one batch, with its graph."""
    images, labels, weights = (part.to(next(net.parameters()).device) for part in batch)
    return loss(_half(net, images), labels, weights)


def optimise(
    net: nn.Module,
    schedule: Schedule,
    loss_of: Callable[[int], Tensor],
    see: Callable[[int, float, nn.Module], bool],
    tell: Callable[[int], Any],
) -> None:
    """Move the weights of `net` down loss_of(step), step 0, 1, ...

    After every `evaluate_every` steps and the last, see(steps done, loss, averaged network) says whether to stop.
    """
    decay: Any = get_ema_multi_avg_fn(schedule.ema)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(net, multi_avg_fn=decay, use_buffers=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=schedule.weight_decay)
    for step in range(schedule.steps):
        rate = learning_rate(step, schedule.steps, schedule.learning_rate, schedule.warm_up)
        optimizer.param_groups[0]["lr"] = rate
        net.train()
        value = _step(net, optimizer, loss_of(step))
        averaged.update_parameters(net)
        tell(step + 1)
        due = (step + 1) % schedule.evaluate_every == 0 or step + 1 == schedule.steps
        if due and see(step + 1, value, averaged.module):
            break


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """One gradient step; the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


class Best:
    """The best weights so far by validation macro AP, and whether `patience` evaluations went by without better."""

    def __init__(self, patience: int) -> None:
        self.patience, self.score, self.step, self.since = patience, -math.inf, 0, 0
        self.history: list[dict[str, float | None]] = []
        self.weights: dict[str, Tensor] = {}

    def see(self, step: int, loss: float, net: Network, val: TrainingSet) -> None:
        """Evaluate `net` after `step` steps, the last of which had `loss`. A val set without positives never ranks."""
        scores = Classifier(net, val.images.shape[-1], {"positive": [0] * val.labels.shape[1]}).predict(val.images)
        self.rank(step, loss, net, macro_average_precision(val.labels, scores.numpy()))

    def rank(self, step: int, loss: float, net: nn.Module, found: float) -> None:
        """The same when the macro AP is known: `found`, NaN where nothing could be ranked."""
        self.history.append({"step": step, "loss": loss, "val_macro_ap": None if math.isnan(found) else found})
        self.since += 1
        if not self.weights or math.isnan(found) or found > self.score:
            self.score, self.step, self.since = found if not math.isnan(found) else self.score, step, 0
            self.weights = {k: v.detach().clone() for k, v in net.state_dict().items()}

    @property
    def stale(self) -> bool:
        """No better weights for `patience` evaluations."""
        return self.since >= self.patience


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
