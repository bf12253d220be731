"""The training loop. It can be killed: step s is a function of the state before it and of s alone.

One safetensors file holds the trained weights, their moving average (torch's AveragedModel), the optimizer and the
losses so far, replaced whole every `checkpoint_every` steps; N steps, a stop and M more give the bytes of N + M steps
in one go. All randomness comes from the step's number, so there is no generator and no loader whose place would have
to be kept. A step's batch is cut into equal parts, one a process and micro-batch: however many there are, they are the
same rows with the same noise.

What a step does is a `Step`: `descent` is the ordinary one, `medlt.privacy.dpsgd` has the private one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from medlt import chance
from medlt.files import digest
from medlt.training.checkpoint import State, resume, write
from medlt.training.runtime import Runtime
from medlt.training.settings import Part, Training, layout
from medlt.training.tracking import Measure, Picture, Track
from medlt.types import InputError

Step: TypeAlias = Callable[[State], float]
"""Update the weights once, from the state's own step number; returns the loss of that step."""


class Loss(Protocol):
    """(network, step, part) -> scalar, the mean over that part of the step's batch; randomness is drawn for the whole
    batch from the step's number, and cut like the batch. It calls the network itself, not its methods: precision and
    the exchange between processes are wrapped round the forward alone."""

    def __call__(self, network: nn.Module, step: int, part: Part, /) -> Tensor: ...


def accelerated(settings: Training, runtime: Runtime, track: Track) -> Any:
    """Set accelerate up for one training. Raises InputError where the device is missing or cannot do the precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = runtime.torch_device(track.name)
    if device.type == "cuda" and device.index is not None and not torch.distributed.is_initialized():
        torch.cuda.set_device(device)
    # accelerate keeps device and precision of the first training of a process for all that follow
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if runtime.precision == "fp32" else runtime.precision,
        gradient_accumulation_steps=settings.accumulate,
        **track.options(),
    )


@contextmanager
def stream(device: torch.device, *key: object) -> Iterator[None]:
    """torch's global stream, which dropout reads, as a function of the key."""
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


def shape(network: Any, settings: Training, on: bool) -> None:
    """Apply recomputed activations and channels last where the settings want them, or undo both."""
    if settings.checkpointing:
        recompute(network, on)
    if settings.channels_last:
        network.to(memory_format=layout(on))


def descent(loss_of: Loss, settings: Training, accelerator: Any, model: nn.Module) -> Step:
    """Return the ordinary step: the gradient of the mean loss over the step's batch, clipped.

    It raises InputError if the loss is no number or no weight moves.
    """

    def step(state: State) -> float:
        total = torch.zeros((), device=accelerator.device)
        for part in settings.parts(accelerator.process_index, accelerator.num_processes):
            with accelerator.accumulate(model), stream(accelerator.device, state.key, state.step, part.index):
                loss = loss_of(model, state.step, part)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(state.parameters, settings.clip)
                state.optimizer.step()
                state.optimizer.zero_grad()
            total += loss.detach().float() / settings.accumulate
        value = float(accelerator.reduce(total, "mean"))
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {state.step + 1}; lower the learning rate")
        if state.step == 0 and not accelerator.optimizer_step_was_skipped:
            state.assert_moved()
        return value

    return step


def run(state: State, step: Step, track: Track, accelerator: Any, runtime: Runtime) -> None:
    """Make the steps that remain: measure, draw and save the moving average as often as the settings say."""
    settings = state.settings
    state.begin_schedule()
    track.begin(accelerator, state.step)
    try:
        with runtime.limited():
            while not state.ended:
                rate = state.rate
                state.advance(step(state))
                track.step(accelerator, state, rate)
                _evaluate(state, track, accelerator)
                if accelerator.is_main_process:
                    runtime.progress(track.name, state.step, settings.last)
    finally:
        track.end(accelerator)


def _evaluate(state: State, track: Track, accelerator: Any) -> None:
    """Measure, draw and save where it is due; the first process does, the others wait.

    Raises InputError, in every process, for weights that are no numbers; the checkpoint before stays.
    """
    settings = state.settings
    measured, saved = settings.measures(state.step), settings.saves(state.step)
    if not (saved or measured):
        return
    state.assert_finite()
    if accelerator.is_main_process or settings.patience is not None:  # all processes must agree on when to stop
        with state.averaged(), torch.no_grad():
            if measured:
                track.measure(accelerator, state)
            saved = saved or (state.ended and settings.checkpoint_every is not None)
            if saved and accelerator.is_main_process:
                track.draw(accelerator, state)
    if saved and track.folder is not None and accelerator.is_main_process:
        write(state, Path(track.folder))
    accelerator.wait_for_everyone()


def fit(
    network: nn.Module, loss_of: Loss, settings: Training, *, runtime: Runtime, folder: Path | None, key: str,
    name: str, evaluate: Measure | None = None, picture: Picture | None = None,
    tracker: Literal["tensorboard"] | None = None,
) -> State:  # fmt: skip
    """Train, in place, the weights of `network` that require gradients.

    The network comes back on the CPU in evaluation mode with its averaged weights, or the best that were measured where
    `settings.patience` is given. `key` names network and data: a checkpoint of another key, or of another training, is
    refused; one that is damaged or has more steps is not used. `evaluate` measures the averaged network, `picture`
    shows it (folder/samples/step_XXXXXX.png). Losses go to folder/history.parquet. Without a folder nothing is written,
    and a stopped training begins anew. Under torchrun each process takes its part of every batch, and the first one
    writes.
    """
    track = Track(tracker, evaluate, picture, name, folder)
    accelerator = accelerated(settings, runtime, track)
    shape(network, settings, True)
    network.to(accelerator.device).train()
    named = digest(key, settings.digest(steps=False), runtime.precision)
    state = State.new(named, network, settings, accelerator.scaler)
    if folder is not None:
        resume(state, folder, restart=True)
    model, state.optimizer = accelerator.prepare(network, state.optimizer)
    run(state, descent(loss_of, settings, accelerator, model), track, accelerator, runtime)
    state.finish()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    shape(network, settings, False)
    network.cpu().eval().requires_grad_(False)
    return state
