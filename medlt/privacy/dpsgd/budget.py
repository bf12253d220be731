"""What one private training is asked, what of it epsilon pays for, and whether it is still the one that began."""

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
    """What makes a training private: fields of a run's section `privacy`, and the noise found for all its stages.

    noise_multiplier: standard deviation of the noise over `clip`; epsilon: the budget, inf is none; before: (noise,
    rate, steps) already spent on these units; times: in how many like trainings a unit can be; physical: rows computed
    at once, in whole units. Raises InputError for values that cannot work together.
    """

    noise_multiplier: float
    epsilon: float
    delta: float
    privacy_unit: Literal["patient", "image"] = "patient"
    max_grad_norm: float = 1.0
    max_images_per_patient: int = 1
    noise_multiplicity: int = 1
    grad_sample_mode: GradSampleMode = GradSampleMode.AUTO
    max_physical_batch_size: int = 128
    secure_mode: bool = True
    before: tuple[tuple[float, float, int], ...] = ()
    times: int = 1

    def __post_init__(self) -> None:
        if not (
            self.noise_multiplier >= 0
            and self.max_grad_norm > 0
            and self.max_physical_batch_size >= 1
            and self.times >= 1
        ):
            raise InputError("private training: noise must be 0 or more; clip, physical and times above 0")
        if math.isinf(self.max_grad_norm) and self.noise_multiplier:
            raise InputError("private training: without a finite clip no noise is enough; give a clip")
        if not self.noise_multiplier and math.isfinite(self.epsilon):
            raise InputError(f"private training: no noise cannot meet epsilon {self.epsilon:g}; calibrate the noise")

    @property
    def digest(self) -> str:
        """Name what decides the weights: mechanism and budget, neither how nor in what pieces it is computed."""
        computed = ("grad_sample_mode", "max_physical_batch_size")
        return digest("private", {name: value for name, value in asdict(self).items() if name not in computed})

    def mechanism(self, rate: float) -> dict[str, Any]:
        """Return what a training that goes on must have in common with its beginning."""
        return {
            "noise_multiplier": self.noise_multiplier, "rate": rate, "max_grad_norm": self.max_grad_norm, "privacy_unit": self.privacy_unit,
            "max_images_per_patient": self.max_images_per_patient, "noise_multiplicity": self.noise_multiplicity, "secure_mode": self.secure_mode,
        }  # fmt: skip


def budget(private: PrivacySettings, rate: float, steps: int) -> int:
    """Return how many of `steps` epsilon pays for, after what was spent before."""
    if math.isinf(private.epsilon):
        return steps
    planned = (private.noise_multiplier, rate, steps * private.times)
    if spent([*private.before, planned], private.delta).epsilon <= private.epsilon:
        return steps
    return _affordable(planned[0], rate, private.epsilon, private.delta, private.before) // private.times


_affordable = lru_cache(64)(affordable)  # it looks many times at an accountant that takes a second a look


def last_step(private: PrivacySettings, rate: float, asked: int, done: int, planned: int, name: str) -> int:
    """Return the step at which a training that is asked for `asked` steps ends, `done` of which are.

    Raises InputError where the budget is spent and more is asked for than was `planned` before; less is told.
    """
    pays = budget(private, rate, asked)
    more = done >= pays and asked > planned
    if pays < asked and (more or not pays):
        raise InputError(
            f"budget spent: epsilon {private.epsilon:g} pays for {pays} steps of {name}, {done} were taken and "
            f"{asked} are asked for; ask for {pays}, or for a larger epsilon from the beginning"
        )
    if pays < asked:
        logging.getLogger(__name__).warning(
            "%s stops after %d of %d steps, which is what epsilon %g pays for", name, pays, asked, private.epsilon
        )
    return min(pays, asked)


def assert_same(about: Mapping[str, Any], mechanism: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError where a training would go on as another mechanism than it began as."""
    begun = about.get("mechanism", mechanism)
    differ = [f"{name} {begun.get(name)}, now {value}" for name, value in mechanism.items() if begun.get(name) != value]
    if differ:
        raise InputError(
            f"{folder} began a private training with {'; '.join(differ)}: what it spent could not be told; go on with "
            "the same, or choose another folder"
        )
