"""A training loop that can be killed: step s is a function of the state before it and of s alone.

One safetensors file holds the trainable weights, their moving average (EMA), the optimizer and the losses so far,
replaced whole every `checkpoint_every` steps; N steps, a stop and M more give the bytes of N + M steps in one go. All
chance comes from the step's number, so there is no generator and no loader whose place would have to be kept. A step's
batch is cut into equal parts, one a process and micro-batch: however many there are, they are the same rows with the
same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from medlt import chance
from medlt.diffusion.checkpoint import State, resume, write
from medlt.diffusion.tracking import Measure, Picture, Track
from medlt.files import digest
from medlt.types import InputError

T = TypeVar("T", bound=Any)

Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


@dataclass(frozen=True)
class Part:
    """Piece `index` of `of` equal pieces of a step's batch: what one process sees in one forward."""

    index: int = 0
    of: int = 1

    def take(self, whole: T) -> T:
        """These rows of anything with one row an image of the whole batch: tensor, array or sequence."""
        rows = len(whole) // self.of
        piece: T = whole[self.index * rows : (self.index + 1) * rows]
        return piece


WHOLE = Part()


class Loss(Protocol):
    """(network, step, part) -> scalar, the mean over that part of the step's batch; chance is drawn for the whole batch
    from the step's number, and cut like the batch."""

    def __call__(self, network: nn.Module, step: int, part: Part, /) -> Tensor: ...


@dataclass(frozen=True)
class Training:
    """How weights move; `batch` images a step, in `accumulate` micro-batches on each process.

    The learning rate rises over `warmup_steps` and then stays, or falls by half a cosine to 0 at `steps`. With a cosine
    `steps` is therefore part of what the training is; `stop_at` ends it earlier, and it can be gone on with. A constant
    rate may be given more `steps` later. `ema` is the largest decay of the moving average, 0 for none (diffusers'
    EMAModel lets it grow to there). `clip` bounds the gradient's norm, inf is off. fp16 needs a GPU. `checkpointing`
    recomputes activations in the backward pass: less memory, the same weights. `channels_last` lays convolutions out
    as 16-bit units want them: faster with bf16 on CPUs and GPUs that have them. Raises InputError for values that
    cannot work.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    batch: int = 16
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 50
    ema: float = 0.999
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip: float = 1.0
    weight_decay: float = 1e-2
    checkpointing: bool = False
    channels_last: bool = False
    checkpoint_every: int = 500
    stop_at: int | None = None

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulate": 1, "checkpoint_every": 1, "warmup_steps": 0, "weight_decay": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise InputError(f"training: {name} is {getattr(self, name)}; give at least {low}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"training: {name} is {getattr(self, name)}; give more than 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"training: ema is {self.ema}; give a decay from 0 up to, not including, 1")
        if self.stop_at is not None and not 1 <= self.stop_at <= self.steps:
            raise InputError(f"training: stop_at is {self.stop_at}; give 1 to {self.steps}, the number of steps")

    @property
    def last(self) -> int:
        """The step this call ends at."""
        return self.steps if self.stop_at is None else self.stop_at

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant" or step < self.warmup_steps:
            return self.learning_rate * warm
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def parts(self, process: int, processes: int) -> list[Part]:
        """What this process computes of a step. Raises InputError if the batch does not divide."""
        of = processes * self.accumulate
        if self.batch % of:
            told = f"{processes} processes x {self.accumulate} micro-batches"
            raise InputError(f"a batch of {self.batch} does not divide into {told}; choose a multiple of {of}")
        return [Part(process * self.accumulate + i, of) for i in range(self.accumulate)]

    def digest(self) -> str:
        """Names what decides the weights: neither how a batch is computed, nor where this call stops."""
        free = {"accumulate", "checkpointing", "channels_last", "checkpoint_every", "stop_at"}
        free |= set() if self.schedule == "cosine" else {"steps"}
        return digest({name: value for name, value in asdict(self).items() if name not in free})


def accelerated(training: Training, device: str, track: Track) -> Any:
    """accelerate, set up for one training. Raises InputError where the device is missing or cannot do the precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, but torch sees no GPU; use device cpu")
    if training.precision == "fp16" and device == "cpu":
        raise InputError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    # accelerate keeps device and precision of the first training of a process for all that follow
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if training.precision == "fp32" else training.precision,
        gradient_accumulation_steps=training.accumulate,
        **track.options(),
    )


@contextmanager
def stream(accelerator: Any, *key: object) -> Iterator[None]:
    """torch's global stream, which dropout reads, as a function of the key."""
    device = accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(chance.seed_of(*key))
        yield


def recompute(network: nn.Module, on: bool) -> None:
    """Recompute activations in the backward pass, in each direct part that can: diffusers' and transformers' models."""
    verb = "enable" if on else "disable"
    parts: list[Any] = [network, *network.children()]
    for part in parts:
        if getattr(part, "_supports_gradient_checkpointing", False):
            getattr(part, f"{verb}_gradient_checkpointing")()
        elif getattr(part, "supports_gradient_checkpointing", False):
            older = not hasattr(part, "activation_checkpointing_enable")  # where there are both names, it warns of one
            getattr(part, f"{'gradient' if older else 'activation'}_checkpointing_{verb}")()


def lay_out(network: Any, layout: torch.memory_format) -> None:
    """Weights of convolutions in this memory format."""
    network.to(memory_format=layout)


def _step(state: State, loss_of: Loss, training: Training, accelerator: Any, model: nn.Module) -> None:
    """One update of weights and moving average. Raises InputError if the loss is no number or no weight moves."""
    for group in state.optimizer.param_groups:
        group["lr"] = training.rate(state.step)
    total = torch.zeros((), device=accelerator.device)
    for part in training.parts(accelerator.process_index, accelerator.num_processes):
        with accelerator.accumulate(model), stream(accelerator, state.key, state.step, part.index):
            loss = loss_of(model, state.step, part)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(state.parameters, training.clip)
            state.optimizer.step()
            state.optimizer.zero_grad()
        total += loss.detach().float() / training.accumulate
    value = float(accelerator.reduce(total, "mean"))
    if not math.isfinite(value):
        raise InputError(f"the loss is {value} at step {state.step + 1}; lower the learning rate")
    if state.step == 0 and not accelerator.optimizer_step_was_skipped:
        state.assert_moved()
    state.advance(value)


def _checkpoint(state: State, accelerator: Any, track: Track) -> None:
    """Measure and picture the moving average, then save; the first process does, the others wait.

    Raises InputError, in every process, for weights that are no numbers; the checkpoint before stays.
    """
    if not all(bool(weight.isfinite().all()) for weight in state.ema.shadow_params):
        raise InputError(f"weights are no numbers at step {state.step}; lower the learning rate")
    if accelerator.is_main_process:
        with state.averaged(), torch.no_grad():
            track.checkpoint(accelerator, state)
        write(state, Path(track.folder))
    accelerator.wait_for_everyone()


def fit(
    network: nn.Module, loss_of: Loss, training: Training, *, folder: Path, key: str, evaluate: Measure | None = None,
    picture: Picture | None = None, tracker: Literal["tensorboard"] | None = None, device: str = "cpu",
    name: str = "training", progress: Progress | None = None,
) -> nn.Module:  # fmt: skip
    """Train the weights of `network` that require gradients, and give it back with their EMA, in evaluation mode.

    `key` names network and data: a checkpoint of another key, or of another training, is refused. `evaluate` measures
    the EMA network at each checkpoint, `picture` shows it (folder/samples/step_XXXXXX.png). Losses go to
    history.parquet. Under torchrun each process takes its part of every batch, and the first one writes.
    """
    track = Track(tracker, evaluate, picture, name, folder)
    accelerator = accelerated(training, device, track)
    if training.checkpointing:
        recompute(network, True)
    if training.channels_last:
        lay_out(network, torch.channels_last)
    network.to(accelerator.device).train()
    named = digest(key, training.digest())
    state = State.new(named, network, training.ema, training.weight_decay, accelerator.scaler)
    resume(state, folder, training.last)
    model, state.optimizer = accelerator.prepare(network, state.optimizer)
    track.begin(accelerator, state.step)
    while state.step < training.last:
        _step(state, loss_of, training, accelerator, model)
        track.step(accelerator, state, training.rate(state.step - 1))
        if state.step % training.checkpoint_every == 0 or state.step == training.last:
            _checkpoint(state, accelerator, track)
        if progress and accelerator.is_main_process:
            progress(name, state.step, training.last)
    track.end(accelerator)
    state.ema.copy_to(state.parameters)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if training.checkpointing:
        recompute(network, False)
    if training.channels_last:
        lay_out(network, torch.contiguous_format)
    return network.cpu().eval().requires_grad_(False)
