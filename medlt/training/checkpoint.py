"""The training state and its checkpoint: trained weights, moving average, optimizer and losses in one safetensors file.

Frozen weights are not written, so a checkpoint of LoRA layers on Stable Diffusion takes megabytes. `write` reads the
new file back and compares every byte before the file replaces the previous checkpoint. `resume` compares the digest of
all values with the one in the header. No pickle is used.
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

from medlt.files import atomic, digest, digest_tensors, tensor_bytes, write_table, write_tensors
from medlt.training.averaging import Moving, averaged_model
from medlt.training.settings import Training
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

FILE = "checkpoint/state.safetensors"
"""Path inside the training folder. Files below checkpoint/ are not part of an artifact (`medlt.store`)."""

SCALER = ("scale", "_growth_tracker")
log = logging.getLogger(__name__)


@dataclass
class Best:
    """The weights with the best score so far. `since` counts the measurements after it."""

    score: float = -math.inf
    step: int = 0
    since: int = 0
    tensors: list[Tensor] = field(default_factory=list)

    def rank(self, score: float, step: int, tensors: list[Tensor]) -> None:
        """Record a score, where larger is better, and keep the weights of the best one.

        A NaN score cannot be ranked; its weights are kept, as the newest.
        """
        self.since += 1
        if not self.tensors or math.isnan(score) or score > self.score:
            self.score = self.score if math.isnan(score) else score
            self.step, self.since, self.tensors = step, 0, [value.detach().clone() for value in tensors]


@dataclass
class State:
    """Everything the next step depends on, and the recorded losses. `metadata` is JSON that the caller adds."""

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
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, key: str, network: nn.Module, settings: Training, scaler: Any = None) -> State:
        """Return the state before the first step of the training `key`.

        Raises InputError if no weight is trainable.
        """
        trainable = [weight for weight in network.parameters() if weight.requires_grad]
        if not trainable:
            raise InputError("the network has no trainable weight; choose full fine-tuning or LoRA layers")
        optimizer = torch.optim.AdamW(
            trainable, settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        moving = Moving(network, trainable)
        average: Any = averaged_model(moving, settings.ema_decay, settings.ema_warmup)
        return cls(key, network, settings, trainable, optimizer, moving, average, scaler=scaler)

    def begin_schedule(self) -> None:
        """Set the learning rate of the next step. `advance` updates it after each step."""
        raw = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        for group in raw.param_groups:
            group["initial_lr"] = self.settings.learning_rate
        self.scheduler = LambdaLR(raw, self.settings.lr_factor, last_epoch=self.step - 1)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def ended(self) -> bool:
        """True if all steps are done, or if `patience` measurements passed without a better score."""
        patience = self.settings.patience
        return self.step >= self.settings.last or (patience is not None and self.best.since >= patience)

    def advance(self, loss: float) -> None:
        """Update the moving average and the learning rate, and record the loss, after an update of the weights."""
        self.average.update_parameters(self.moving)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a step that the fp16 loss scaler skips counts as a step
            self.scheduler.step()
        self.step += 1
        self.losses.append(loss)

    def record_score(self, score: float) -> None:
        """Record a score of the averaged network, and keep its weights if they are the best."""
        self.validation[self.step] = score
        if self.settings.patience is not None:
            self.best.rank(score, self.step, self.average.module.tensors())

    def assert_moved(self) -> None:
        """Raise InputError if the first update changed no weight of the network."""
        before = self.average.module.weights
        if all(torch.equal(weight, first) for weight, first in zip(self.parameters, before, strict=True)):
            raise InputError("the first step changed no weight; the loss does not depend on the trainable weights")

    def assert_finite(self) -> None:
        """Raise InputError if an averaged weight is NaN or infinite."""
        if not all(bool(weight.isfinite().all()) for weight in self.average.module.weights):
            raise InputError(f"a weight is NaN or infinite at step {self.step}; lower learning_rate")

    @torch.no_grad()
    def install(self, tensors: list[Tensor]) -> None:
        """Copy these values into the network's trained weights and buffers."""
        for own, value in zip(self.moving.tensors(), tensors, strict=True):
            own.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network its averaged weights, in evaluation mode, inside the block; restore it afterwards."""
        before = [value.detach().clone() for value in self.moving.tensors()]
        self.install(self.average.module.tensors())
        self.network.eval()
        try:
            yield
        finally:
            self.network.train()
            self.install(before)

    def finish(self) -> None:
        """Give the network its final weights: those with the best score, or the moving average."""
        self.install(self.best.tensors or self.average.module.tensors())

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained weights and the buffers by name."""
        frozen = {name for name, weight in self.network.named_parameters() if not weight.requires_grad}
        return {name: value for name, value in self.network.state_dict().items() if name not in frozen}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state under flat names, as safetensors stores them."""
        named = {f"network.{name}": value for name, value in self.trained_state().items()}
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
        """Load the result of `tensors`. Raises KeyError or RuntimeError if it belongs to another network."""
        weights = {name: named[f"network.{name}"] for name in self.trained_state()}
        self.network.load_state_dict(weights, strict=False)
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
                slots.setdefault(int(number), {})[slot] = _in_format_of(value, self.parameters[int(number)])
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.scaler is not None:
            scale = {"scale": float(named["scaler.scale"]), "_growth_tracker": int(named["scaler._growth_tracker"])}
            self.scaler.load_state_dict(self.scaler.state_dict() | scale)

    def history(self) -> pd.DataFrame:
        """Return a table with one row per step: loss, and validation (NaN if it was not measured)."""
        import numpy as np
        import pandas as pd

        steps = pd.Index(np.arange(1, self.step + 1), name="step")  # unlike a RangeIndex, it is written as a column
        table = pd.DataFrame({"loss": self.losses}, index=steps)
        return table.assign(validation=pd.Series(self.validation, dtype="float64").reindex(steps))


def _in_format_of(value: Tensor, like: Tensor) -> Tensor:
    """Return an optimizer moment in its weight's memory format, which files do not store; other values unchanged."""
    return torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value


def first_difference(path: Path, tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor whose bytes in `path` differ, or None."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        if set(stored.keys()) != set(tensors):
            return sorted(set(stored.keys()) ^ set(tensors))[0]
        for name, value in tensors.items():
            read = stored.get_tensor(name)
            same = value.dtype == read.dtype and value.shape == read.shape
            if not same or tensor_bytes(value) != tensor_bytes(read):
                return name
    return None


def write_checkpoint(state: State, folder: Path) -> None:
    """Write history.parquet, then the checkpoint.

    Raises InputError if the file differs from what was written. The previous checkpoint stays in place then.
    """
    write_table(folder / "history.parquet", state.history())
    tensors = state.tensors()
    with atomic(folder / FILE) as temporary:
        header = {"key": state.key, "step": state.step} | ({"metadata": state.metadata} if state.metadata else {})
        write_tensors(temporary, tensors, {"training": json.dumps(header | {"digest": _digest(header, tensors)})})
        if (name := first_difference(temporary, tensors)) is not None:
            raise InputError(
                f"{folder / FILE}: {name} of step {state.step} differs after it was written; the disk or the memory is "
                "faulty or full. The previous checkpoint is kept. Free or replace the disk, then run again"
            )


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return a digest of the whole checkpoint; the format has no checksum of its own."""
    return digest(json.loads(json.dumps(header)), digest_tensors(tensors))


def resume(state: State, folder: Path, *, restart: bool = False) -> None:
    """Load the checkpoint in `folder`, if there is one, and write its history again.

    Raises InputError if the checkpoint belongs to another training, is damaged, or has more steps than the settings.
    With `restart` the last two cases start a new training instead; a damaged file is renamed, with a warning.
    """
    from safetensors import SafetensorError, safe_open

    path, steps = Path(folder) / FILE, state.settings.last
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as stored:
            header = json.loads((stored.metadata() or {}).get("training", "{}"))
            named = {name: stored.get_tensor(name) for name in stored.keys()} if header.get("key") == state.key else {}
            if named and header.pop("digest", None) != _digest(header, named):
                raise ValueError("it has other values than were written")
    except (SafetensorError, ValueError, AttributeError, TypeError) as error:  # metadata of another form
        if not restart:
            raise InputError(f"{path} is damaged ({error}); move it away to start again") from None
        damaged = path.with_suffix(".damaged")
        path.replace(damaged)
        log.warning("%s is damaged; it was renamed to %s and the training starts again", path, damaged.name)
        return
    if not named:
        raise InputError(f"{folder} contains a training with other settings or data; choose another folder or move it")
    if header["step"] > steps:
        if restart:
            return
        raise InputError(f"{folder} was already trained for {header['step']} steps, more than {steps}; set more steps")
    state.restore(named, header["step"])
    state.metadata = header.get("metadata", {})
    write_table(Path(folder) / "history.parquet", state.history())  # the one there may be damaged, or of more steps
