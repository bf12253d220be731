"""Gradient steps: AdamW under a warm-up and a cosine, a moving average of the weights, the best of them kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medlt.classify.classifier import Pace


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


def learning_rate(step: int, steps: int, peak: float, warm_up: float) -> float:
    """Linear from 0 to `peak` over the first `warm_up` share of steps, then a half cosine to 0."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


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
    fused = next(net.parameters()).is_cuda  # one kernel a step; on a CPU it would change the last bits
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=schedule.weight_decay, fused=fused)
    for step in range(schedule.steps):
        rate = learning_rate(step, schedule.steps, schedule.learning_rate, schedule.warm_up)
        optimizer.param_groups[0]["lr"] = rate
        net.train()
        value = _step(net, optimizer, loss_of(step))
        averaged.update_parameters(net)
        tell(step + 1)
        due = (step + 1) % schedule.evaluate_every == 0 or step + 1 == schedule.steps
        if due and see(step + 1, float(value), averaged.module):
            break


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One gradient step; the loss, left on its device: to read it would make a GPU wait."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


class Best:
    """The best weights so far by validation macro AP, and whether `patience` evaluations went by without better."""

    def __init__(self, patience: int) -> None:
        self.patience, self.score, self.step, self.since = patience, -math.inf, 0, 0
        self.history: list[dict[str, float | None]] = []
        self.weights: dict[str, Tensor] = {}

    def rank(self, step: int, loss: float, net: nn.Module, found: float) -> None:
        """Take note of `net` after `step` steps, the last of which had `loss`.

        found: its macro AP, NaN where nothing could be ranked: then the last weights are kept.
        """
        self.history.append({"step": step, "loss": loss, "val_macro_ap": None if math.isnan(found) else found})
        self.since += 1
        if not self.weights or math.isnan(found) or found > self.score:
            self.score, self.step, self.since = found if not math.isnan(found) else self.score, step, 0
            self.weights = {k: v.detach().clone() for k, v in net.state_dict().items()}

    @property
    def stale(self) -> bool:
        """No better weights for `patience` evaluations."""
        return self.since >= self.patience


class Clock:
    """Measures a training: what it waited for batches, what it spent on evaluations, and all of it."""

    def __init__(self) -> None:
        self.begun, self.spent = perf_counter(), {"waiting": 0.0, "evaluating": 0.0}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        begun = perf_counter()
        yield
        self.spent[name] += perf_counter() - begun

    def pace(self, images: int) -> Pace:
        """The pace of a training that saw `images` images since this clock was made."""
        time = max(perf_counter() - self.begun - self.spent["evaluating"], 1e-9)
        return Pace(images / time, 1 - self.spent["waiting"] / time)
