"""The state of a training and its one file: trained weights, moving average, optimizer, losses. Never a pickle.

What is frozen is not written: adapters on a Stable Diffusion make a checkpoint of megabytes. The file is read back and
compared to the bit before it replaces the one before.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from medlt.files import atomic, tensor_bytes, write_table, write_tensors
from medlt.training.averaging import Moving, averaged_model
from medlt.training.settings import Training
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

FILE = "checkpoint/state.safetensors"
"""Inside a training's folder; what lies below checkpoint/ is no part of an artifact (`medlt.store`)."""

SCALER = ("scale", "_growth_tracker")
log = logging.getLogger(__name__)


@dataclass
class Best:
    """The weights of the best measurement so far; `since` measurements went by without a better one."""

    score: float = -math.inf
    step: int = 0
    since: int = 0
    tensors: list[Tensor] = field(default_factory=list)

    def rank(self, score: float, step: int, tensors: list[Tensor]) -> None:
        """Take note of a measurement; larger is better. NaN, where nothing could be ranked, takes the newest."""
        self.since += 1
        if not self.tensors or math.isnan(score) or score > self.score:
            self.score = self.score if math.isnan(score) else score
            self.step, self.since, self.tensors = step, 0, [value.detach().clone() for value in tensors]


@dataclass
class State:
    """Everything the next step depends on, and the losses on record. `about`: JSON kept beside, by whoever sets it."""

    key: str
    network: nn.Module
    settings: Training
    parameters: list[nn.Parameter]
    optimizer: Any
    moving: Moving
    average: Any
    best: Best = field(default_factory=Best)
    scheduler: Any = None
    scaler: Any = None
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, key: str, network: nn.Module, settings: Training, scaler: Any = None) -> State:
        """Before the first step of the training that `key` names. Raises InputError if nothing can be trained."""
        trainable = [weight for weight in network.parameters() if weight.requires_grad]
        if not trainable:
            raise InputError("no weight of the network is trainable; choose full training, or LoRA layers")
        optimizer = torch.optim.AdamW(
            trainable, settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        moving = Moving(network, trainable)
        average: Any = averaged_model(moving, settings.ema, settings.ema_warmup)
        return cls(key, network, settings, trainable, optimizer, moving, average, scaler=scaler)

    def begin_schedule(self) -> None:
        """Set the learning rate of the next step; `advance` keeps it right from then on."""
        raw = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        for group in raw.param_groups:
            group["initial_lr"] = self.settings.learning_rate
        self.scheduler = LambdaLR(raw, self.settings.share, last_epoch=self.step - 1)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or no better weights were found for `patience` measurements."""
        patience = self.settings.patience
        return self.step >= self.settings.last or (patience is not None and self.best.since >= patience)

    def advance(self, loss: float) -> None:
        """After an update of the weights: the moving average follows, the loss is on record."""
        self.average.update_parameters(self.moving)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a step that fp16's loss scale skipped is a step
            self.scheduler.step()
        self.step += 1
        self.losses.append(loss)

    def measured(self, score: float) -> None:
        """Record a measurement of the averaged network, and keep its weights if they are the best."""
        self.validation[self.step] = score
        if self.settings.patience is not None:
            self.best.rank(score, self.step, self.average.module.tensors())

    def assert_moved(self) -> None:
        """Raises InputError if the first update changed no weight of the network: the optimizer holds others then."""
        before = self.average.module.weights
        if all(torch.equal(weight, first) for weight, first in zip(self.parameters, before, strict=True)):
            raise InputError("no weight moved in the first step; the loss does not depend on the trainable weights")

    def assert_finite(self) -> None:
        """Raises InputError for averaged weights that are no numbers."""
        if not all(bool(weight.isfinite().all()) for weight in self.average.module.weights):
            raise InputError(f"weights are no numbers at step {self.step}; lower the learning rate")

    @torch.no_grad()
    def install(self, tensors: list[Tensor]) -> None:
        """Put these values into the network's trained weights and buffers."""
        for own, value in zip(self.moving.tensors(), tensors, strict=True):
            own.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its moving average, in evaluation mode; afterwards as it was."""
        before = [value.detach().clone() for value in self.moving.tensors()]
        self.install(self.average.module.tensors())
        self.network.eval()
        try:
            yield
        finally:
            self.network.train()
            self.install(before)

    def finish(self) -> None:
        """Give the network its final weights: the best that were measured, or the moving average."""
        self.install(self.best.tensors or self.average.module.tensors())

    def kept(self) -> dict[str, Tensor]:
        """Weights that are trained, and buffers."""
        frozen = {name for name, weight in self.network.named_parameters() if not weight.requires_grad}
        return {name: value for name, value in self.network.state_dict().items() if name not in frozen}

    def tensors(self) -> dict[str, Tensor]:
        """All of it under flat names, as safetensors wants it."""
        named = {f"network.{name}": value for name, value in self.kept().items()}
        named |= {f"average.{i}": value for i, value in enumerate(self.average.module.tensors())}
        named |= {f"best.{i}": value for i, value in enumerate(self.best.tensors)}
        for i, slots in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        if self.scaler is not None:
            scale = self.scaler.state_dict()
            named |= {f"scaler.{name}": torch.tensor(scale[name], dtype=torch.float64) for name in SCALER}
        named["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        named["validation"] = torch.tensor(list(self.validation.items()), dtype=torch.float64).reshape(-1, 2)
        named["measured"] = torch.tensor([self.best.score, self.best.step, self.best.since], dtype=torch.float64)
        return named

    @torch.no_grad()
    def restore(self, named: dict[str, Tensor], step: int) -> None:
        """Take over what `tensors` gave. Raises KeyError or RuntimeError where it is of another network."""
        kept = {name: named[f"network.{name}"] for name in self.kept()}
        self.network.load_state_dict(kept, strict=False)
        for i, own in enumerate(self.average.module.tensors()):
            own.copy_(named[f"average.{i}"])
        self.average.n_averaged.fill_(step)
        self._restore_optimizer(named)
        score, at, since = named["measured"].tolist()
        count = sum(name.startswith("best.") for name in named)
        self.best = Best(score, int(at), int(since), [named[f"best.{i}"] for i in range(count)])
        self.step, self.losses = step, named["losses"].tolist()
        self.validation = {int(at): value for at, value in named["validation"].tolist()}

    def _restore_optimizer(self, named: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in named.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".")
                slots.setdefault(int(number), {})[slot] = _laid_out(value, self.parameters[int(number)])
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.scaler is not None:
            scale = {"scale": float(named["scaler.scale"]), "_growth_tracker": int(named["scaler._growth_tracker"])}
            self.scaler.load_state_dict(self.scaler.state_dict() | scale)

    def history(self) -> pd.DataFrame:
        """Return one row a step: loss, and validation (NaN where it was not measured)."""
        import numpy as np
        import pandas as pd

        steps = pd.Index(np.arange(1, self.step + 1), name="step")  # written as a column, unlike a range
        table = pd.DataFrame({"loss": self.losses}, index=steps)
        return table.assign(validation=pd.Series(self.validation, dtype="float64").reindex(steps))


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A moment of a weight in that weight's memory format, which files do not keep; other values as they are."""
    return torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value


def differing(path: Path, tensors: dict[str, Tensor]) -> str | None:
    """Return the first tensor that `path` does not hold to the bit, or None."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        if set(stored.keys()) != set(tensors):
            return sorted(set(stored.keys()) ^ set(tensors))[0]
        for name, value in tensors.items():
            there = stored.get_tensor(name)
            same = value.dtype == there.dtype and value.shape == there.shape
            if not same or tensor_bytes(value) != tensor_bytes(there):
                return name
    return None


def write(state: State, folder: Path) -> None:
    """Write history.parquet, then the checkpoint.

    Raises InputError if it reads back otherwise than written; the checkpoint before is then kept.
    """
    write_table(folder / "history.parquet", state.history())
    tensors = state.tensors()
    with atomic(folder / FILE) as temporary:
        about = {"key": state.key, "step": state.step} | ({"about": state.about} if state.about else {})
        write_tensors(temporary, tensors, {"training": json.dumps(about)})
        if (name := differing(temporary, tensors)) is not None:
            raise InputError(
                f"{folder / FILE}: {name} reads back otherwise than it was written at step {state.step}; the disk or "
                "memory is at fault, the checkpoint before is kept; free or change the disk and run again"
            )


def resume(state: State, folder: Path, *, restart: bool = False) -> None:
    """Load the checkpoint in `folder`, if any. Raises InputError if it belongs to another training.

    A damaged one, and one with more steps than are wanted, is refused too; with `restart` the training begins anew
    instead, and the damaged file is set aside with a warning.
    """
    from safetensors import SafetensorError, safe_open

    path, steps = Path(folder) / FILE, state.settings.last
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as stored:
            about = json.loads((stored.metadata() or {}).get("training", "{}"))
            named = {name: stored.get_tensor(name) for name in stored.keys()} if about.get("key") == state.key else {}
    except (SafetensorError, ValueError) as error:
        if not restart:
            raise InputError(f"{path} is damaged ({error}); move it away to begin anew") from None
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.warning("%s is damaged; it was moved to %s and the training begins anew", path, aside.name)
        return
    if not named:
        raise InputError(f"{folder} holds a training with other settings or data; choose another folder, or move it")
    if about["step"] > steps:
        if restart:
            return
        raise InputError(f"{folder} was already trained for {about['step']} steps, more than {steps}; ask for more")
    state.restore(named, about["step"])
    state.about = about.get("about", {})
