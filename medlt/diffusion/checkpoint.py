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

from medlt.files import atomic, write_table
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

FILE = "checkpoint.safetensors"
SCALER = ("scale", "_growth_tracker")
KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass
class State:
    """Everything the next step depends on, and the losses on record."""

    key: str
    network: nn.Module
    parameters: list[nn.Parameter]
    optimizer: Any
    ema: Any
    scaler: Any = None
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

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


def _bytes(value: Tensor) -> Any:
    """A tensor's bytes, uint8 [size], on the CPU and without a copy where it is there already."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write safetensors one tensor at a time: the library's own writer first copies all of them in memory.

    The format: the header's length in 8 bytes, little-endian; the header, JSON padded to 8 bytes; the tensors' bytes.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        value, start = tensors[name], end
        end += value.numel() * value.element_size()
        header[name] = {"dtype": KINDS[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for name in order:
            file.write(_bytes(tensors[name]))


def differing(path: Path, tensors: dict[str, Tensor]) -> str | None:
    """The first tensor that `path` does not hold to the bit, or None."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        if set(stored.keys()) != set(tensors):
            return sorted(set(stored.keys()) ^ set(tensors))[0]
        for name, value in tensors.items():
            there = stored.get_tensor(name)
            same = value.dtype == there.dtype and value.shape == there.shape
            if not same or (_bytes(value) != _bytes(there)).any():
                return name
    return None


def write(state: State, folder: Path) -> None:
    """history.parquet, then the checkpoint. Raises InputError if it reads back otherwise; the old one is then kept."""
    write_table(folder / "history.parquet", state.history())
    tensors = state.tensors()
    with atomic(folder / FILE) as temporary:
        save(temporary, tensors, {"training": json.dumps({"key": state.key, "step": state.step})})
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
