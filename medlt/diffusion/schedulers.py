"""diffusers schedulers, set up to speak x0: one table of names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule
from medlt.types import InputError

_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    "tcd": ("TCDScheduler", {"clip_sample": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
NAMES = tuple(_CLASSES)
"""Schedulers that take an x0 estimate, whole timesteps and unscaled inputs. Euler, Heun and LMS scale theirs."""


def scheduler(name: str, steps: int, noise: NoiseSchedule = STABLE_DIFFUSION) -> Any:
    """A fresh diffusers scheduler of `steps` steps that takes x0 estimates. Multistep ones serve one batch only."""
    import diffusers

    if name not in _CLASSES:
        raise InputError(f"scheduler {name!r} is not known; use one of {', '.join(NAMES)}")
    kind, extra = _CLASSES[name]
    built = getattr(diffusers, kind)(prediction_type="sample", **noise.options(), **extra)
    if "timestep_spacing" in built.config:
        built.register_to_config(timestep_spacing="trailing")
    if steps > built.config.get("original_inference_steps", steps):  # lcm and tcd pick from 50 steps; let them have all
        built.register_to_config(original_inference_steps=noise.train_steps)
    built.set_timesteps(steps)
    return built


def factory(name: str, steps: int, noise: NoiseSchedule = STABLE_DIFFUSION) -> Callable[[], Any]:
    """A maker of fresh schedulers, one for each batch; its arguments are checked now."""
    scheduler(name, steps, noise)
    return lambda: scheduler(name, steps, noise)


def draws_noise(built: Any) -> bool:
    """Whether a step of this scheduler draws random noise, so that it needs a generator to be repeatable."""
    parameters = inspect.signature(built.step).parameters
    if "generator" not in parameters or ("eta" in parameters and not parameters["eta"].default):
        return False
    return "sde" in built.config.get("algorithm_type", "sde")
