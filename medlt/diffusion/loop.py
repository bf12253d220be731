"""A training loop that can be killed: step s is a function of the state before it and of s alone.

One safetensors file holds the network, its moving average (EMA), the optimizer and the losses so far, replaced whole
every `checkpoint_every` steps; N steps, a stop and M more give the bytes of N + M steps in one go. The learning rate
warms up and then stays, so that a longer training goes through the same states.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medlt.files import write_table, write_tensors
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

Loss = Callable[[nn.Module, int], Tensor]
"""(network, step) -> scalar loss; all chance comes from the step's number."""

FILE = "checkpoint.safetensors"
WARMUP_STEPS = 50


@dataclass
class State:
    """Everything the next step depends on, and the losses on record."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Any
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    @classmethod
    def new(cls, network: nn.Module, learning_rate: float, ema: float) -> State:
        """Before the first step."""
        from diffusers.training_utils import EMAModel

        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2, fused=True)
        return cls(network, optimizer, EMAModel(network.parameters(), decay=ema, foreach=True))

    def tensors(self) -> dict[str, Tensor]:
        """All of it under flat names, as safetensors wants it."""
        named = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        named |= {f"ema.{i}": value for i, value in enumerate(self.ema.shadow_params)}
        for i, slots in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        named["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        named["validation"] = torch.tensor(list(self.validation.items()), dtype=torch.float64).reshape(-1, 2)
        return named

    def restore(self, named: dict[str, Tensor], step: int) -> None:
        """Take over what `tensors` gave."""
        kept = {name.removeprefix("network."): value for name, value in named.items() if name.startswith("network.")}
        self.network.load_state_dict(kept)
        for i, shadow in enumerate(self.ema.shadow_params):
            shadow.copy_(named[f"ema.{i}"])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in named.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".")
                slots.setdefault(int(number), {})[slot] = value
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.ema.optimization_step = self.step = step
        self.losses = named["losses"].tolist()
        self.validation = {int(at): value for at, value in named["validation"].tolist()}

    def history(self) -> pd.DataFrame:
        """One row a step: loss, and validation (NaN where it was not measured)."""
        import pandas as pd

        steps = pd.RangeIndex(1, self.step + 1, name="step")
        table = pd.DataFrame({"loss": self.losses}, index=steps)
        return table.assign(validation=pd.Series(self.validation, dtype="float64").reindex(steps))


def _write(state: State, folder: Path, key: str) -> None:
    write_table(folder / "history.parquet", state.history())
    write_tensors(folder / FILE, state.tensors(), {"training": json.dumps({"key": key, "step": state.step})})


def _resume(state: State, folder: Path, key: str, steps: int) -> None:
    """Load the checkpoint in `folder`, if any. Raises InputError if it belongs to another training."""
    from safetensors import safe_open

    if not (folder / FILE).is_file():
        return
    with safe_open(folder / FILE, "pt") as stored:
        about = json.loads(stored.metadata()["training"])
        if about["key"] != key:
            raise InputError(
                f"{folder} holds a training with other settings or data; choose another folder, or move it"
            )
        if about["step"] > steps:
            raise InputError(f"{folder} was already trained for {about['step']} steps, more than {steps}; ask for more")
        state.restore({name: stored.get_tensor(name) for name in stored.keys()}, about["step"])


def _validated(state: State, evaluate: Callable[[nn.Module], float]) -> float:
    """`evaluate` on the moving average; the network is left as it was."""
    parameters = list(state.network.parameters())
    state.ema.store(parameters)
    state.ema.copy_to(parameters)
    state.network.eval()
    with torch.no_grad():
        value = evaluate(state.network)
    state.network.train()
    state.ema.restore(parameters)
    return value


def _step(state: State, loss_of: Loss, learning_rate: float, accelerator: Any, model: nn.Module) -> None:
    """One update of network and moving average. Raises InputError if the loss is no number."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * min(1.0, (state.step + 1) / WARMUP_STEPS)
    loss = loss_of(model, state.step)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.step(state.network.parameters())
    state.step += 1
    state.losses.append(float(loss.detach()))
    if not math.isfinite(state.losses[-1]):
        raise InputError(f"the loss is {state.losses[-1]} at step {state.step}; lower the learning rate")


def fit(
    network: nn.Module,
    loss_of: Loss,
    *,
    steps: int,
    learning_rate: float,
    ema: float,
    folder: Path,
    key: str,
    checkpoint_every: int = 500,
    evaluate: Callable[[nn.Module], float] | None = None,
    device: str = "cpu",
    name: str = "training",
    progress: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    """Train `network` to `steps` updates with AdamW and give it back with its EMA weights, in evaluation mode.

    `key` names settings and data: a checkpoint of another key is refused. `evaluate` measures the EMA network at each
    checkpoint. Losses go to history.parquet.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    state = State.new(network.to(accelerator.device).train(), learning_rate, ema)
    _resume(state, folder, key, steps)
    model, state.optimizer = accelerator.prepare(network, state.optimizer)
    while state.step < steps:
        _step(state, loss_of, learning_rate, accelerator, model)
        if state.step % checkpoint_every == 0 or state.step == steps:
            if evaluate is not None:
                state.validation[state.step] = _validated(state, evaluate)
            if accelerator.is_main_process:
                _write(state, folder, key)
        if progress:
            progress(name, state.step, steps)
    state.ema.copy_to(network.parameters())
    return network.cpu().eval().requires_grad_(False)
