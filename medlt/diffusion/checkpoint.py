"""The state of a training and its one file: trainable weights, moving average, optimizer, losses. Never a pickle.

What is frozen is not written: adapters on a Stable Diffusion make a checkpoint of megabytes. The file is read back and
compared to the bit before it takes the place of the one before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medlt.files import atomic, tensor_bytes, write_table, write_tensors
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

FILE = "checkpoint.safetensors"
SCALER = ("scale", "_growth_tracker")


@dataclass
class State:
    """Everything the next step depends on, and the losses on record. `about`: JSON kept beside, by whoever sets it."""

    key: str
    network: nn.Module
    parameters: list[nn.Parameter]
    optimizer: Any
    ema: Any
    scaler: Any = None
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, key: str, network: nn.Module, ema: float, weight_decay: float, scaler: Any = None) -> State:
        """Before the first step of the training that `key` names. Raises InputError if nothing can be trained."""
        from diffusers.training_utils import EMAModel

        trainable = [weight for weight in network.parameters() if weight.requires_grad]
        if not trainable:
            raise InputError("no weight of the network is trainable; choose full training, or LoRA layers")
        optimizer = torch.optim.AdamW(trainable, weight_decay=weight_decay, fused=True)
        return cls(key, network, trainable, optimizer, EMAModel(trainable, decay=ema, foreach=True), scaler)

    def advance(self, loss: float) -> None:
        """After an update of the weights: the moving average follows, the loss is on record."""
        self.ema.step(self.parameters)
        self.step += 1
        self.losses.append(loss)

    def assert_moved(self) -> None:
        """Raises InputError if the first update changed no weight of the network: the optimizer holds others then."""
        before = self.ema.shadow_params
        if all(torch.equal(weight, first) for weight, first in zip(self.parameters, before, strict=True)):
            raise InputError("no weight moved in the first step; the loss does not depend on the trainable weights")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its moving average, in evaluation mode; afterwards as it was."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.network.eval()
        try:
            yield
        finally:
            self.network.train()
            self.ema.restore(self.parameters)

    def kept(self) -> dict[str, Tensor]:
        """Weights that are trained, and buffers."""
        frozen = {name for name, weight in self.network.named_parameters() if not weight.requires_grad}
        return {name: value for name, value in self.network.state_dict().items() if name not in frozen}

    def tensors(self) -> dict[str, Tensor]:
        """All of it under flat names, as safetensors wants it."""
        named = {f"network.{name}": value for name, value in self.kept().items()}
        named |= {f"ema.{i}": value for i, value in enumerate(self.ema.shadow_params)}
        for i, slots in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        if self.scaler is not None:
            told = self.scaler.state_dict()
            named |= {f"scaler.{name}": torch.tensor(told[name], dtype=torch.float64) for name in SCALER}
        named["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        named["validation"] = torch.tensor(list(self.validation.items()), dtype=torch.float64).reshape(-1, 2)
        return named

    def restore(self, named: dict[str, Tensor], step: int) -> None:
        """Take over what `tensors` gave. Raises KeyError or RuntimeError where it is of another network."""
        kept = {name: named[f"network.{name}"] for name in self.kept()}
        self.network.load_state_dict(kept, strict=False)
        for i, shadow in enumerate(self.ema.shadow_params):
            shadow.copy_(named[f"ema.{i}"])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in named.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".")
                like = self.parameters[int(number)]
                slots.setdefault(int(number), {})[slot] = _laid_out(value, like)
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.scaler is not None:
            told = {"scale": float(named["scaler.scale"]), "_growth_tracker": int(named["scaler._growth_tracker"])}
            self.scaler.load_state_dict(self.scaler.state_dict() | told)
        self.ema.optimization_step = self.step = step
        self.losses = named["losses"].tolist()
        self.validation = {int(at): value for at, value in named["validation"].tolist()}

    def history(self) -> pd.DataFrame:
        """One row a step: loss, and validation (NaN where it was not measured)."""
        import pandas as pd

        steps = pd.RangeIndex(1, self.step + 1, name="step")
        table = pd.DataFrame({"loss": self.losses}, index=steps)
        return table.assign(validation=pd.Series(self.validation, dtype="float64").reindex(steps))


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A moment of a weight in that weight's memory format, which files do not keep; other values as they are."""
    return torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value


def differing(path: Path, tensors: dict[str, Tensor]) -> str | None:
    """The first tensor that `path` does not hold to the bit, or None."""
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
    """history.parquet, then the checkpoint. Raises InputError if it reads back otherwise; the old one is then kept."""
    write_table(folder / "history.parquet", state.history())
    tensors = state.tensors()
    with atomic(folder / FILE) as temporary:
        told = {"key": state.key, "step": state.step} | ({"about": state.about} if state.about else {})
        write_tensors(temporary, tensors, {"training": json.dumps(told)})
        if (name := differing(temporary, tensors)) is not None:
            raise InputError(
                f"{folder / FILE}: {name} reads back otherwise than it was written at step {state.step}; the disk or "
                "memory is at fault, the checkpoint before is kept; free or change the disk and run again"
            )


def resume(state: State, folder: Path, steps: int) -> None:
    """Load the checkpoint in `folder`, if any. Raises InputError if it is damaged or belongs to another training."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / FILE
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as stored:
            about = json.loads((stored.metadata() or {}).get("training", "{}"))
            named = {name: stored.get_tensor(name) for name in stored.keys()} if about.get("key") == state.key else {}
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); move it away to begin anew") from None
    if not named:
        raise InputError(f"{folder} holds a training with other settings or data; choose another folder, or move it")
    if about["step"] > steps:
        raise InputError(f"{folder} was already trained for {about['step']} steps, more than {steps}; ask for more")
    state.restore(named, about["step"])
    state.about = about.get("about", {})
