"""Training under differential privacy: DP-SGD by unit (arXiv 1607.00133), with AdamW, a moving average and a budget.

A step draws units (`units`), takes each one's clipped gradient (`gradients`), adds normal noise to the sum and divides
by the expected number of units, which is no secret as the number drawn is. The loop is that of every training
(`medlt.training.loop.run`): it can be killed and continues; what it has spent is in the checkpoint beside the weights.
The losses on record (history.parquet) are of patients without noise: they stay with whoever may see the patients, and
are no part of what epsilon covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from medlt.files import digest, digest_tensors
from medlt.privacy.dpsgd.budget import PrivacySettings, assert_same, budget, last_step
from medlt.privacy.dpsgd.gradients import PerUnit, measured
from medlt.privacy.dpsgd.randomness import Randomness, Secure, Seeded
from medlt.privacy.dpsgd.step import Losses, PrivateStep
from medlt.privacy.dpsgd.units import Units
from medlt.privacy.ledger import MECHANISM, Mechanism, write_mechanism
from medlt.rng import torch_generator
from medlt.training.checkpoint import State, resume
from medlt.training.loop import accelerated, configure, run, stream
from medlt.training.protocols import RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.training.tracking import Measure, Picture, Track
from medlt.types import GradSampleMode, InputError

__all__ = ["PrivacySettings", "budget", "fit"]

VERSIONS = ("torch", "opacus")


def _accelerator(training: Training, runtime: Runtime, track: Track) -> Any:
    """Set accelerate up. Raises InputError for several processes, for fp16, and for a stop that data decide."""
    if runtime.precision == "fp16":
        raise InputError("private training: fp16 scales losses, and with them what is clipped; use bf16 or fp32")
    if training.patience is not None:
        raise InputError("private training: patience chooses weights by patients' images; leave it out")
    accelerator = accelerated(training, runtime.at("fp32"), track)
    if accelerator.num_processes > 1:
        raise InputError(
            f"private training: {accelerator.num_processes} processes were started, it runs in one; start it without "
            "torchrun, and raise `physical` to use the GPU"
        )
    return accelerator


def _state(
    network: nn.Module, training: Training, private: PrivacySettings, rate: float, folder: Path, key: str
) -> State:
    """Return the state as far as it was taken.

    Raises InputError for another training, or another mechanism, in `folder`.
    """
    state = State.new(digest(key, training.digest(steps=False), "private"), network, training)
    resume(state, folder)
    assert_same(state.metadata, private.mechanism(rate), folder)
    return state


def _fastest(network: nn.Module, losses: Losses, units: Units, private: PrivacySettings) -> GradSampleMode:
    """Return the fastest way to take gradients here, on a piece as large as pieces will be."""
    count = max(1, private.max_physical_batch_size // (units.most * units.multiplicity))
    chosen = [np.repeat(rows[: units.most], units.multiplicity) for rows in units.rows[:count]]
    groups = np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
    draw, rows = torch_generator("measuring private training"), np.concatenate(chosen)
    with stream(losses.device, "measuring private training"):
        return measured(network, lambda: losses(network, rows, draw, []), groups)


def fit_private(
    network: nn.Module, loss: RowLoss, units: Sequence[str], *, training: Training, private: PrivacySettings, runtime: Runtime,
    folder: Path, key: str, name: str, data: str, evaluate: Measure | None = None, picture: Picture | None = None,
    tracker: Literal["tensorboard"] | None = None,
) -> Mechanism:  # fmt: skip
    """Train, in place, the weights of `network` that require gradients; afterwards it has their moving average.

    units: whose row each is, one a row; where private.unit is "image" each row is a unit by itself. Of `training`
    `batch` is the expected number of units a step, and `clip` and `accumulate` are not used. `key` names network and
    settings, `data` the rows (a digest). Writes `folder`/mechanism.json, and returns what it holds. Stopped and called
    again, it continues: with fresh noise, and with what was spent. It ends at the budget, and says so. `physical`
    changes no more than which numbers a loss draws for which row. Raises InputError for a network that cannot be
    trained so (`medlt.privacy.dpsgd.preflight`), settings other than those it began with, and a spent budget.
    """
    from medlt.privacy.dpsgd.preflight import prepare

    owners = list(units) if private.privacy_unit == "patient" else [str(row) for row in range(len(units))]
    rate = training.batch_size / max(1, len(set(owners)))
    members = Units(owners, rate, private.max_images_per_patient, private.noise_multiplicity)
    track = Track(tracker, evaluate, picture, name, folder)
    accelerator = _accelerator(training, runtime, track)
    changes = prepare(network.to(accelerator.device))
    configure(network, training, True)
    state = _state(network.train(), training, private, rate, Path(folder), digest(key, data, runtime.precision))
    last = last_step(private, rate, training.last, state.step, state.metadata.get("planned", 0), name)
    step = partial(_step, Losses(loss, accelerator.device, runtime.precision), members, private, runtime, name)
    state.metadata |= {"mechanism": private.mechanism(rate), "planned": training.last}
    if state.step < last:
        state.settings = replace(training, stop_at=last)
        _run(state, step(state), track, accelerator, runtime)
    _finish(state, training)
    told = _mechanism(state, members, private, name, data, changes)
    write_mechanism(Path(folder) / MECHANISM, told)
    return told


def _step(
    losses: Losses, units: Units, private: PrivacySettings, runtime: Runtime, name: str, state: State
) -> PrivateStep:
    """Return the step of this training; how it takes gradients is chosen once, and kept with the state."""
    way = GradSampleMode(state.metadata.get("grad_sample_mode", private.grad_sample_mode))
    if way is GradSampleMode.AUTO:
        way = _fastest(state.network, losses, units, private)
    state.metadata["grad_sample_mode"] = way.value
    gradients = PerUnit(state.network, private.max_grad_norm, way)
    return PrivateStep(losses, units, private, gradients, _randomness(private, runtime.seed), name)


def _run(state: State, step: PrivateStep, track: Track, accelerator: Any, runtime: Runtime) -> None:
    try:
        run(state, step, track, accelerator, runtime)
    finally:
        step.gradients.close()


def _randomness(private: PrivacySettings, seed: int) -> Randomness:
    return Secure() if private.secure_mode else Seeded(seed)


def _finish(state: State, training: Training) -> None:
    state.finish()
    configure(state.network, training, False)
    state.network.cpu().eval().requires_grad_(False)


def _mechanism(
    state: State, units: Units, private: PrivacySettings, name: str, data: str, changes: tuple[str, ...]
) -> Mechanism:  # fmt: skip
    """Return what the ledger keeps of it."""
    return Mechanism(
        stage=name, unit=private.privacy_unit, units=len(units), sample_rate=units.rate, clip=private.max_grad_norm,
        way=state.metadata["grad_sample_mode"], noise_multiplier=private.noise_multiplier, steps=state.step,
        planned=state.metadata["planned"], times=private.times, images_per_unit=private.max_images_per_patient,
        multiplicity=private.noise_multiplicity, secure=private.secure_mode, randomness=_randomness(private, 0).told, data=data,
        weights=digest_tensors({str(i): weight for i, weight in enumerate(state.parameters)}), changes=changes,
        versions={package: metadata.version(package) for package in VERSIONS},
    )  # fmt: skip
