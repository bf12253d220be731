"""The training loop. It resumes exactly: step s depends on the state before it and on the number s only.

One safetensors file contains the trained weights, their moving average (torch's AveragedModel), the optimizer and the
losses. It is replaced as a whole every `checkpoint_every` steps. N steps, a stop and M more steps give the same bytes
as N + M steps at once. All randomness comes from the number of the step, so the state of no generator and no data
loader has to be saved. The batch of a step is cut into equal parts, one for each process and micro-batch. The rows and
the noise of the whole batch do not depend on the number of parts.

A `Step` updates the weights once: `gradient_step` is the ordinary one, `medlt.privacy.dpsgd` has the private one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from medlt import processes
from medlt.files import digest
from medlt.rng import seed_of
from medlt.training.checkpoint import State, resume, write_checkpoint
from medlt.training.distributed import average_gradients, share, whole_batch_norms
from medlt.training.runtime import Runtime
from medlt.training.settings import BatchPart, Training, layout
from medlt.training.tracking import Measure, Picture, Track
from medlt.types import InputError

Step: TypeAlias = Callable[[State], float]
"""Function that updates the weights once, at the step number of the state, and returns the loss of that step."""


class Loss(Protocol):
    """Function (network, step, part) -> scalar, whose mean over the parts is the loss of the step's batch.

    A mean over rows is one. A mean over some entries, such as known labels, is multiplied by `BatchPart.share`. Random
    numbers are drawn for the whole batch from the number of the step, and cut like the batch. The function calls the
    network itself where it is trained in bf16 or fp16: accelerate lowers the precision of `forward` only.
    """

    def __call__(self, network: nn.Module, step: int, part: BatchPart, /) -> Tensor: ...


def accelerated(settings: Training, runtime: Runtime, track: Track) -> Any:
    """Return an Accelerator for one training.

    Raises InputError if the device does not exist or does not support the precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = runtime.torch_device(track.name)
    processes.join(runtime.device)
    if device.type == "cuda" and device.index is not None and not torch.distributed.is_initialized():
        torch.cuda.set_device(device)
    # accelerate would reuse the device and the precision of the first training of a process
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if runtime.precision == "fp32" else runtime.precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        **track.options(),
    )


@contextmanager
def stream(device: torch.device, *key: object) -> Iterator[None]:
    """Seed torch's global generator, which dropout uses, from the key inside the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(*key))
        yield


def set_gradient_checkpointing(network: nn.Module, on: bool) -> None:
    """Switch gradient checkpointing on or off, in the network and its direct children that support it.

    These are the models of diffusers and transformers.
    """
    verb = "enable" if on else "disable"
    parts: list[Any] = [network, *network.children()]
    for part in parts:
        if getattr(part, "_supports_gradient_checkpointing", False):
            getattr(part, f"{verb}_gradient_checkpointing")()
        elif getattr(part, "supports_gradient_checkpointing", False):
            old = not hasattr(part, "activation_checkpointing_enable")  # the old name warns where both exist
            getattr(part, f"{'gradient' if old else 'activation'}_checkpointing_{verb}")()


def configure(network: Any, settings: Training, on: bool) -> None:
    """Apply gradient checkpointing and the channels-last format if the settings require them, or undo both."""
    if settings.gradient_checkpointing:
        set_gradient_checkpointing(network, on)
    if settings.channels_last:
        network.to(memory_format=layout(on))


def gradient_step(loss_of: Loss, settings: Training, accelerator: Any, model: nn.Module) -> Step:
    """Return the ordinary step: it follows the clipped gradient of the mean loss over the step's batch.

    The step raises InputError if the loss is NaN or infinite, or if no weight changes.
    """

    def step(state: State) -> float:
        total = torch.zeros((), device=accelerator.device)
        for part in settings.parts(processes.number(), processes.count()):
            with accelerator.accumulate(model), stream(accelerator.device, state.key, state.step, part.index):
                loss = loss_of(model, state.step, part)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    average_gradients(state.parameters)
                    accelerator.clip_grad_norm_(state.parameters, settings.max_grad_norm)
                state.optimizer.step()
                state.optimizer.zero_grad()
            total += loss.detach().float() / settings.gradient_accumulation_steps
        value = float(processes.reduce(total, mean=True))
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {state.step + 1}; lower learning_rate")
        if state.step == 0 and not accelerator.optimizer_step_was_skipped:
            state.assert_moved()
        return value

    return step


def run(state: State, step: Step, track: Track, accelerator: Any, runtime: Runtime) -> None:
    """Make the remaining steps, and evaluate and save the moving average at the intervals of the settings."""
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
                if processes.first():
                    runtime.progress(track.name, state.step, settings.last)
    finally:
        track.end(accelerator)


def _evaluate(state: State, track: Track, accelerator: Any) -> None:
    """Evaluate, write a sample grid and save if they are due. The first process does this, the others wait.

    Raises InputError, in every process, if a weight is NaN or infinite; the previous checkpoint stays in place.
    """
    settings = state.settings
    evaluates, saves = settings.measures(state.step), settings.saves(state.step)
    if not (saves or evaluates):
        return
    state.assert_finite()
    with state.averaged(), torch.no_grad():
        if evaluates:
            track.measure(accelerator, state)
        saves = saves or (state.ended and settings.checkpoint_every is not None)
        if saves:
            track.write_samples(accelerator, state)
    if saves and track.folder is not None:
        write_checkpoint(state, Path(track.folder))
    processes.wait()


def fit(
    network: nn.Module, loss_of: Loss, settings: Training, *, runtime: Runtime, folder: Path | None, key: str,
    name: str, evaluate: Measure | None = None, picture: Picture | None = None,
    tracker: Literal["tensorboard"] | None = None,
) -> State:  # fmt: skip
    """Train, in place, the weights of `network` that require gradients, and return the final state.

    Afterwards the network is on the CPU, in evaluation mode, with its averaged weights, or with the weights of the best
    score if `settings.patience` is set. `key` names network and data. A checkpoint with another key or other settings
    raises InputError; a checkpoint that is damaged or has more steps is not used. `evaluate` measures the averaged
    network; `picture` makes the images of its sample grid (folder/samples/step_XXXXXX.png). Losses go to
    folder/history.parquet. Without a folder nothing is written, and a stopped training starts again. Under torchrun
    each process takes its part of every batch, and the first process writes.
    """
    folder = folder if processes.first() else None
    track = Track(tracker, evaluate, picture, name, folder)
    accelerator = accelerated(settings, runtime, track)
    configure(network, settings, True)
    network.to(accelerator.device).train()
    named = digest(key, settings.digest(steps=False), runtime.precision)
    state = State.new(named, network, settings, accelerator.scaler)
    if folder is not None:
        resume(state, folder, restart=True)
    share(state)
    # for its precision only: in no wrapper, and not to another device, which would replace buffers of the state
    model = accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
    state.optimizer = accelerator.prepare_optimizer(state.optimizer)
    with whole_batch_norms(network):
        run(state, gradient_step(loss_of, settings, accelerator, model), track, accelerator, runtime)
    state.finish()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    configure(network, settings, False)
    network.cpu().eval().requires_grad_(False)
    return state
