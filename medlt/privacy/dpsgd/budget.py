"""Settings of a private training, the steps that epsilon pays for, and the check that a resumed one is the same."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from medlt.files import digest
from medlt.privacy.accounting import affordable, spent
from medlt.types import GradSampleMode, InputError


@dataclass(frozen=True)
class PrivacySettings:
    """Settings of a private training: the section `privacy` of a config, and the noise calibrated for all stages.

    units: public number of units, whatever their true number; a step draws each with probability batch_size / units.
    clip_margin: see `limits.clip_margin`. noise_multiplier: standard deviation of the noise over `max_grad_norm`;
    epsilon: the budget, inf for none; before: (noise / margin, rate, steps) already spent on these units; times: in how
    many trainings of this kind a unit can be; max_physical_batch_size: rows computed at once, in whole units. The other
    fields are those of `medlt.config.privacy.Privacy`. Raises InputError for values that do not fit together.
    """

    noise_multiplier: float
    epsilon: float
    delta: float
    units: int
    privacy_unit: Literal["patient", "image"] = "patient"
    max_grad_norm: float = 1.0
    max_images_per_patient: int = 1
    noise_multiplicity: int = 1
    grad_sample_mode: GradSampleMode = GradSampleMode.AUTO
    max_physical_batch_size: int = 128
    secure_mode: bool = True
    before: tuple[tuple[float, float, int], ...] = ()
    times: int = 1
    clip_margin: float = 1.0

    def __post_init__(self) -> None:
        if not (
            self.noise_multiplier >= 0
            and self.units >= 1
            and self.max_grad_norm > 0
            and self.max_physical_batch_size >= 1
            and self.times >= 1
        ):
            raise InputError(
                "private training: noise_multiplier must be 0 or more, and units, max_grad_norm, "
                "max_physical_batch_size and times above 0"
            )
        if math.isinf(self.max_grad_norm) and self.noise_multiplier:
            raise InputError("private training: max_grad_norm is infinite; give a finite one, which noise can hide")
        if not self.noise_multiplier and math.isfinite(self.epsilon):
            raise InputError(
                f"private training: noise_multiplier 0 cannot meet epsilon {self.epsilon:g}; calibrate the noise"
            )

    @property
    def digest(self) -> str:
        """Digest of the settings that decide the weights: all but how, and in what pieces, gradients are computed."""
        computed = ("grad_sample_mode", "max_physical_batch_size")
        return digest("private", {name: value for name, value in asdict(self).items() if name not in computed})

    def mechanism(self, rate: float) -> dict[str, Any]:
        """Return the settings that a resumed training must share with its beginning."""
        names = ("noise_multiplier", "clip_margin", "max_grad_norm", "privacy_unit", "max_images_per_patient",
                 "noise_multiplicity", "secure_mode")  # fmt: skip
        return {"rate": rate} | {name: getattr(self, name) for name in names}


def budget(private: PrivacySettings, rate: float, steps: int) -> int:
    """Return how many of `steps` epsilon pays for, after the steps of `private.before`."""
    if math.isinf(private.epsilon):
        return steps
    planned = (private.noise_multiplier / private.clip_margin, rate, steps * private.times)
    if spent([*private.before, planned], private.delta).epsilon <= private.epsilon:
        return steps
    return _affordable(planned[0], rate, private.epsilon, private.delta, private.before) // private.times


_affordable = lru_cache(64)(affordable)  # it calls an accountant many times, and each call takes a second


def last_step(private: PrivacySettings, rate: float, steps: int, done: int, planned: int, name: str) -> int:
    """Return the step at which a training of `steps` steps ends, of which `done` are taken.

    It logs a warning if epsilon pays for fewer. Raises InputError if the budget is spent and `steps` is more than was
    `planned` before.
    """
    pays = budget(private, rate, steps)
    more = done >= pays and steps > planned
    if pays < steps and (more or not pays):
        raise InputError(
            f"budget spent: epsilon {private.epsilon:g} pays for {pays} steps of {name}, {done} were taken and the "
            f"config has {steps}; set {pays} steps, or start again in a new folder with a larger epsilon"
        )
    if pays < steps:
        logging.getLogger(__name__).warning(
            "%s stops after %d of %d steps, because epsilon %g pays for no more", name, pays, steps, private.epsilon
        )
    return min(pays, steps)


def assert_same(metadata: Mapping[str, Any], mechanism: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError if a resumed training has another mechanism than it began with."""
    begun = metadata.get("mechanism", mechanism)
    differ = [f"{name} {begun.get(name)}, now {value}" for name, value in mechanism.items() if begun.get(name) != value]
    if differ:
        raise InputError(
            f"{folder} began a private training with {'; '.join(differ)}: its cost cannot be computed; continue with "
            "the same settings, or choose another folder"
        )
