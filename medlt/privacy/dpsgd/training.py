"""Training under differential privacy: DP-SGD by unit (arXiv 1607.00133), with AdamW, a moving average and a budget.

A step samples units (`units`), computes the clipped gradient of each (`gradients`), adds normal noise to their sum and
divides by the batch size, which is public; the number sampled and the true number of units are secret. Several
processes take pieces of max_physical_batch_size rows in turn, so that is best batch_size over their number. The loop is
that of every training (`medlt.training.loop.run`): it can be killed and resumed, and the steps spent are in the
checkpoint with the weights. The losses in history.parquet are computed on patients without noise. Epsilon does not
cover them: share them only with people who may see the patients.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from medlt import processes
from medlt.files import digest, digest_tensors
from medlt.privacy.dpsgd.budget import PrivacySettings, assert_same, budget, last_step
from medlt.privacy.dpsgd.canaries import GradientCanaries, Observer, write_scores
from medlt.privacy.dpsgd.gradients import PerUnit, fastest_mode
from medlt.privacy.dpsgd.randomness import Randomness, Secure, Seeded
from medlt.privacy.dpsgd.step import CANARY_SCORES, Losses, PrivateStep
from medlt.privacy.dpsgd.units import Units
from medlt.privacy.ledger import MECHANISM, Mechanism, write_mechanism
from medlt.privacy.limits import clip_margin
from medlt.rng import torch_generator
from medlt.training.checkpoint import State, resume
from medlt.training.distributed import share
from medlt.training.loop import accelerated, configure, run, stream
from medlt.training.protocols import RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.training.tracking import Measure, Picture, Track
from medlt.types import GradSampleMode, InputError

__all__ = ["PrivacySettings", "budget", "fit_private"]

VERSIONS = ("torch", "opacus")


def _accelerator(training: Training, runtime: Runtime, track: Track) -> Any:
    """Set up accelerate. Raises InputError for fp16, and for early stopping."""
    if runtime.precision == "fp16":
        raise InputError("private training: fp16 scales losses, and so the clipped gradients; use bf16 or fp32")
    if training.patience is not None:
        raise InputError("private training: patience selects weights with images of patients; remove patience")
    return accelerated(training, runtime.at("fp32"), track)


def _state(
    network: nn.Module, training: Training, private: PrivacySettings, rate: float, folder: Path, key: str
) -> State:
    """Return the state, resumed from `folder` if there is one.

    Raises InputError if `folder` holds another training or another mechanism.
    """
    state = State.new(digest(key, training.digest(steps=False), "private"), network, training)
    if processes.first():
        resume(state, folder)
    share(state)
    assert_same(state.metadata, private.mechanism(rate), folder)
    return state


def _fastest(network: nn.Module, losses: Losses, units: Units, private: PrivacySettings) -> GradSampleMode:
    """Return the fastest grad_sample_mode here, measured on a piece of max_physical_batch_size rows."""
    count = max(1, private.max_physical_batch_size // (units.most * units.noise_multiplicity))
    chosen = [np.repeat(rows[: units.most], units.noise_multiplicity) for rows in units.rows[:count]]
    groups = np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
    rng, rows = torch_generator("measuring private training"), np.concatenate(chosen)
    with stream(losses.device, "measuring private training"):
        return fastest_mode(network, lambda: losses(network, rows, rng, []), groups)


def _probe(network: nn.Module, losses: Losses) -> Callable[[np.ndarray], Tensor]:
    """Return the function from row numbers to losses, with the same random numbers in each call."""

    def of(rows: np.ndarray) -> Tensor:
        with stream(losses.device, "probe of rows"):
            return losses(network, rows, torch_generator("probe of rows"), [])

    return of


def fit_private(
    network: nn.Module, loss: RowLoss, units: Sequence[str], *, training: Training, private: PrivacySettings,
    runtime: Runtime, folder: Path, key: str, name: str, data: str, evaluate: Measure | None = None,
    picture: Picture | None = None, tracker: Literal["tensorboard"] | None = None,
    canaries: GradientCanaries | None = None,
) -> Mechanism:  # fmt: skip
    """Train, in place, the weights of `network` that require gradients, and give it their moving average.

    units: the name of the unit of each row; if private.privacy_unit is "image", each row is a unit by itself instead.
    training: its batch_size is the expected number of units per step if there are private.units; its clipping and
    gradient_accumulation_steps are not used. key: names network and settings; data: digest of the rows.
    private.max_physical_batch_size changes nothing but the random numbers that a loss uses for each row. canaries: of
    an audit, in a training whose weights are never released; their scores are written to `folder`.

    Writes `folder`/mechanism.json and returns its contents. A stopped training continues when called again, with new
    noise and the steps already spent. It ends at the budget, with a warning. Raises InputError for a network that
    cannot be trained privately (`medlt.privacy.dpsgd.preflight`), for changed settings, and for a spent budget.
    """
    from medlt.privacy.dpsgd.preflight import assert_rows_independent, prepare

    owners = list(units) if private.privacy_unit == "patient" else [str(row) for row in range(len(units))]
    private = replace(private, clip_margin=clip_margin(runtime.precision))
    rate = training.batch_size / private.units
    members = Units(owners, rate, private.max_images_per_patient, private.noise_multiplicity)
    track = Track(tracker, evaluate, picture, name, folder if processes.first() else None)
    accelerator = _accelerator(training, runtime, track)
    changes = prepare(network.to(accelerator.device))
    configure(network, training, True)
    assert_rows_independent(network.train(), _probe(network, Losses(loss, accelerator.device, "fp32")), len(owners))
    canary = [canaries.digest] if canaries else []
    state = _state(network, training, private, rate, Path(folder), digest(key, data, runtime.precision, *canary))
    last = last_step(private, rate, training.last, state.step, state.metadata.get("planned", 0), name)
    losses = Losses(loss, accelerator.device, runtime.precision)
    step = partial(_step, losses, members, private, runtime, name, canaries)
    state.metadata |= {"mechanism": private.mechanism(rate), "planned": training.last}
    _run(state, last, training, step, track, accelerator, runtime)
    changes += _scored(state, canaries, Path(folder))
    return _written(_mechanism(state, members, private, name, data, changes), Path(folder))


def _written(mechanism: Mechanism, folder: Path) -> Mechanism:
    """Return the record of a training, written in the first process."""
    if processes.first():
        write_mechanism(folder / MECHANISM, mechanism)
    return mechanism


def _warn_idle(private: PrivacySettings, batch: int, name: str) -> None:
    """Log a warning if a step has fewer pieces than there are processes."""
    rows = batch * private.noise_multiplicity
    if processes.count() > 1 and rows / private.max_physical_batch_size < processes.count():
        logging.getLogger(__name__).warning(
            "%s: a step of about %d rows has fewer pieces than %d processes; set privacy.max_physical_batch_size to %d "
            "or less, so that none waits", name, rows, processes.count(), max(1, rows // processes.count())
        )  # fmt: skip


def _step(
    losses: Losses, units: Units, private: PrivacySettings, runtime: Runtime, name: str,
    canaries: GradientCanaries | None, state: State,
) -> PrivateStep:  # fmt: skip
    """Return the step of this training. Its grad_sample_mode is chosen once and kept in the state."""
    _warn_idle(private, state.settings.batch_size, name)
    mode = GradSampleMode(state.metadata.get("grad_sample_mode", private.grad_sample_mode))
    if mode is GradSampleMode.AUTO:
        mode = GradSampleMode(processes.value(lambda: _fastest(state.network, losses, units, private).value))
    state.metadata["grad_sample_mode"] = mode.value
    gradients = PerUnit(state.network, private.max_grad_norm, mode)
    observer = None
    if canaries is not None:
        observer = Observer(
            canaries, gradients.weights, units.rate, private.noise_multiplier, private.max_grad_norm
        )  # fmt: skip
    return PrivateStep(losses, units, private, gradients, _randomness(private, runtime.seed), name, observer)


def _run(
    state: State, last: int, training: Training, step: Callable[[State], PrivateStep], track: Track, accelerator: Any,
    runtime: Runtime,
) -> None:  # fmt: skip
    """Take the steps up to `last`, restore the network in any case, and give it its averaged weights."""
    if state.step < last:
        state.settings = replace(training, stop_at=last)
        private_step = step(state)
        try:
            run(state, private_step, track, accelerator, runtime)
        finally:
            private_step.gradients.close()
    _finish(state, training)


def _randomness(private: PrivacySettings, seed: int) -> Randomness:
    """Return the source of noise and sampling."""
    return Secure() if private.secure_mode else Seeded(seed)


def _finish(state: State, training: Training) -> None:
    """Give the network its averaged weights, on the CPU, in evaluation mode and frozen."""
    state.finish()
    configure(state.network, training, False)
    state.network.cpu().eval().requires_grad_(False)


def _scored(state: State, canaries: GradientCanaries | None, folder: Path) -> tuple[str, ...]:
    """Write the scores of canaries, and return what they changed, for the ledger."""
    if canaries is None:
        return ()
    write_scores(folder, canaries, state.metadata[CANARY_SCORES])
    return (f"{len(canaries.included)} canaries in the gradients, for an audit",)


def _mechanism(
    state: State, units: Units, private: PrivacySettings, name: str, data: str, changes: tuple[str, ...]
) -> Mechanism:  # fmt: skip
    """Return the record of the training for the ledger."""
    return Mechanism(
        stage=name, privacy_unit=private.privacy_unit, units=private.units, sample_rate=units.rate,
        max_grad_norm=private.max_grad_norm, clip_margin=private.clip_margin,
        grad_sample_mode=state.metadata["grad_sample_mode"],
        noise_multiplier=private.noise_multiplier, steps=state.step, planned=state.metadata["planned"],
        times=private.times, max_images_per_patient=private.max_images_per_patient,
        noise_multiplicity=private.noise_multiplicity, secure_mode=private.secure_mode,
        randomness=_randomness(private, 0).description, data=data,
        weights=digest_tensors({str(i): weight for i, weight in enumerate(state.parameters)}), changes=changes,
        versions={package: metadata.version(package) for package in VERSIONS},
    )  # fmt: skip
