"""diffusers schedulers, set up to speak x0: one table of names, Stable Diffusion's noise levels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medlt.types import InputError

TRAIN_STEPS = 1000
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

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


def abar() -> Tensor:
    """Cumulative signal share at each training timestep: float32 [1000], x_t = sqrt(abar) x0 + sqrt(1 - abar) n."""
    start, end = BETAS["beta_start"], BETAS["beta_end"]
    betas = torch.linspace(start**0.5, end**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2  # type: ignore[operator]
    return (1 - betas).cumprod(0).float()


def scheduler(name: str, steps: int) -> Any:
    """A fresh diffusers scheduler of `steps` steps that takes x0 estimates. Multistep ones serve one batch only."""
    import diffusers

    if name not in _CLASSES:
        raise InputError(f"scheduler {name!r} is not known; use one of {', '.join(NAMES)}")
    kind, extra = _CLASSES[name]
    built = getattr(diffusers, kind)(prediction_type="sample", **BETAS, **extra)
    if "timestep_spacing" in built.config:
        built.register_to_config(timestep_spacing="trailing")
    if steps > built.config.get("original_inference_steps", steps):  # lcm and tcd pick from 50 steps; let them have all
        built.register_to_config(original_inference_steps=TRAIN_STEPS)
    built.set_timesteps(steps)
    return built


def factory(name: str, steps: int) -> Callable[[], Any]:
    """A maker of fresh schedulers, one for each batch; its arguments are checked now."""
    scheduler(name, steps)
    return lambda: scheduler(name, steps)


def draws_noise(built: Any) -> bool:
    """Whether a step of this scheduler draws random noise, so that it needs a generator to be repeatable."""
    parameters = inspect.signature(built.step).parameters
    if "generator" not in parameters or ("eta" in parameters and not parameters["eta"].default):
        return False
    return "sde" in built.config.get("algorithm_type", "sde")
