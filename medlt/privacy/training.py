"""Training under differential privacy: DP-SGD by unit (arXiv 1607.00133), with AdamW, a moving average and a budget.

A step draws units (`units`), takes each one's clipped gradient (`gradients`), adds normal noise to the sum and divides
by the expected number of units, which is no secret as the number drawn is. It can be killed and goes on; what it has
spent is in the checkpoint beside the weights. The losses on record (history.parquet) are of patients without noise:
they stay with whoever may see the patients, and are no part of what epsilon covers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from medlt import chance
from medlt.diffusion.checkpoint import State, resume
from medlt.diffusion.loop import Progress, Training, accelerated, lay_out, recompute, stream
from medlt.diffusion.tracking import Measure, Picture, Track
from medlt.files import digest, digest_tensors
from medlt.privacy.budget import Private, assert_same, budget, last_step
from medlt.privacy.gradients import PerUnit, measured
from medlt.privacy.ledger import Mechanism
from medlt.privacy.randomness import Randomness, Secure, Seeded
from medlt.privacy.stepping import Run
from medlt.privacy.units import Units
from medlt.types import InputError, RowLoss

__all__ = ["Private", "budget", "fit"]

VERSIONS = ("torch", "opacus")


def _alone(training: Training, device: str, track: Track) -> Any:
    """accelerate, for device and trackers. Raises InputError for several processes, and for fp16."""
    if training.precision == "fp16":
        raise InputError("private training: fp16 scales losses, and with them what is clipped; use bf16 or fp32")
    accelerator = accelerated(replace(training, precision="fp32"), device, track)
    if accelerator.num_processes > 1:
        raise InputError(
            f"private training: {accelerator.num_processes} processes were started, it runs in one; start it without "
            "torchrun, and raise `physical` to use the GPU"
        )
    return accelerator


def _shape(network: nn.Module, training: Training, on: bool) -> None:
    """Recomputed activations and channels last, where the training wants them; or as they were."""
    if training.checkpointing:
        recompute(network, on)
    if training.channels_last:
        lay_out(network, torch.channels_last if on else torch.contiguous_format)


def _begun(network: nn.Module, training: Training, private: Private, rate: float, folder: Path, key: str) -> State:
    """The state as far as it was taken. Raises InputError for another training, or another mechanism, in `folder`."""
    state = State.new(digest(key, training.digest(), "private"), network, training.ema, training.weight_decay)
    resume(state, folder, training.last)
    assert_same(state.about, private.mechanism(rate), folder)
    return state


def _randomness(private: Private) -> Randomness:
    return Secure() if private.secure else Seeded(private.seed)


def _way(run: Callable[[str], Run], units: Units, private: Private) -> str:
    """The fastest way to take gradients here, on a piece as large as pieces will be."""
    count = max(1, private.physical // (units.most * units.multiplicity))
    chosen = [np.repeat(rows[: units.most], units.multiplicity) for rows in units.rows[:count]]
    groups = np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
    probe, draw = run("book"), chance.generator("measuring private training")
    probe.gradients.close()
    with stream(probe.accelerator, "measuring private training"):
        return measured(probe.state.network, lambda: probe.losses(np.concatenate(chosen), draw, []), groups)


def _loop(run: Run, last: int, track: Track, progress: Progress | None) -> None:
    track.begin(run.accelerator, run.state.step)
    try:
        while run.state.step < last:
            run.step()
            track.step(run.accelerator, run.state, run.training.rate(run.state.step - 1))
            if run.state.step % run.training.checkpoint_every == 0 or run.state.step == last:
                run.checkpoint(track)
            if progress:
                progress(run.name, run.state.step, last)
    finally:
        run.gradients.close()
        track.end(run.accelerator)


def fit(
    network: nn.Module, loss: RowLoss, units: Sequence[str], *, training: Mapping[str, Any], private: Private,
    folder: Path, key: str, name: str, data: str, device: str = "cpu", evaluate: Measure | None = None,
    picture: Picture | None = None, tracker: Literal["tensorboard"] | None = None, progress: Progress | None = None,
) -> Mechanism:  # fmt: skip
    """Train, in place, the weights of `network` that require gradients; afterwards it has their EMA, and evaluates.

    units: whose row each is, one a row; training: fields of `medlt.diffusion.loop.Training`, of which `batch` is the
    expected number of units a step, and `clip` and `accumulate` are not used; `data` names the rows (a digest). Stopped
    and called again, it goes on: with fresh noise, and with what was spent. It ends at the budget, and says so.
    `physical` changes no more than which numbers a loss draws for which row. Raises InputError for a network that
    cannot be trained so (`medlt.privacy.preflight`), settings other than those it began with, and a spent budget.
    """
    from medlt.privacy.preflight import prepare

    paced, track = Training(**training), Track(tracker, evaluate, picture, name, folder)
    rate = paced.batch / max(1, len(set(units)))
    members = Units(units, rate, private.images_per_patient, private.multiplicity)
    accelerator = _alone(paced, device, track)
    changes = prepare(network, accelerator.device)
    _shape(network, paced, True)
    state = _begun(network.train(), paced, private, rate, Path(folder), digest(key, data))
    last = last_step(private, rate, paced.last, state.step, state.about.get("planned", 0), name)

    def run(way: str) -> Run:
        randomness = Secure() if private.secure else Seeded(private.seed)
        return Run(
            state, loss, members, paced, private, PerUnit(network, private.clip, way), randomness, accelerator, name
        )

    measure = private.way == "measure" and state.step < last
    way = state.about.get("way") or (_way(run, members, private) if measure else private.way)
    state.about |= {"mechanism": private.mechanism(rate), "way": way, "planned": paced.last}
    if state.step < last:
        _loop(run(way), last, track, progress)
    _finish(network, state, paced)
    return _told(state, members, private, name, data, changes)


def _finish(network: nn.Module, state: State, training: Training) -> None:
    state.ema.copy_to(state.parameters)
    _shape(network, training, False)
    network.cpu().eval().requires_grad_(False)


def _told(
    state: State, units: Units, private: Private, name: str, data: str, changes: tuple[str, ...]
) -> Mechanism:  # fmt: skip
    """What the ledger keeps of it."""
    return Mechanism(
        stage=name, unit=private.unit, units=len(units), sample_rate=units.rate, clip=private.clip,
        way=state.about["way"], noise_multiplier=private.noise_multiplier, steps=state.step,
        planned=state.about["planned"], times=private.times, images_per_unit=private.images_per_patient,
        multiplicity=private.multiplicity, secure=private.secure, randomness=_randomness(private).told, data=data,
        weights=digest_tensors({str(i): weight for i, weight in enumerate(state.parameters)}), changes=changes,
        versions={package: metadata.version(package) for package in VERSIONS},
    )  # fmt: skip
