"""diffusers schedulers with x0 estimates as input: a table of names, and the differences between them.

Some keep x_t itself, others x_t / sqrt(abar) = x0 + sigma n (`scale_model_input` turns that into x_t). Most take x0.
Some cannot, or place their steps between trained timesteps. Then the denoiser gets the nearest trained timestep (like
`quantize` of k-diffusion), and its estimate is converted to the noise that it implies there. This is the output of an
epsilon network, so nothing is lost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from medlt.diffusion.noise import STABLE_DIFFUSION, NoiseSchedule
from medlt.types import InputError


@dataclass(frozen=True)
class _Kind:
    """A diffusers class and its settings; `takes_x0`: whether it takes x0 and uses trained timesteps only."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_x0: bool = True


_KINDS = {
    "ddim": _Kind("DDIMScheduler", {"clip_sample": False}),
    "ddpm": _Kind("DDPMScheduler", {"clip_sample": False}),
    "pndm": _Kind("PNDMScheduler", {"skip_prk_steps": True}, takes_x0=False),
    "lms": _Kind("LMSDiscreteScheduler"),
    "euler": _Kind("EulerDiscreteScheduler"),
    "euler_a": _Kind("EulerAncestralDiscreteScheduler", takes_x0=False),
    "heun": _Kind("HeunDiscreteScheduler"),
    "kdpm2": _Kind("KDPM2DiscreteScheduler", takes_x0=False),
    "kdpm2_a": _Kind("KDPM2AncestralDiscreteScheduler", takes_x0=False),
    "dpm++": _Kind("DPMSolverMultistepScheduler"),
    "dpm++karras": _Kind("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, takes_x0=False),
    "dpm++sde": _Kind("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++single": _Kind("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "deis": _Kind("DEISMultistepScheduler"),
    "unipc": _Kind("UniPCMultistepScheduler"),
    "sa": _Kind("SASolverScheduler"),
    "lcm": _Kind("LCMScheduler", {"clip_sample": False}),
    "tcd": _Kind("TCDScheduler", {"clip_sample": False}),
}
NAMES = tuple(_KINDS)

UNFIT: Mapping[str, str] = {
    "dpm_sde": "DPMSolverSDEScheduler needs the package torchsde, and draws one noise for a whole batch, so that an "
    "image would depend on its neighbours; use dpm++sde",
    "ipndm": "IPNDMScheduler has a noise schedule of its own and ignores the trained one; use pndm",
    "edm_euler": "EDMEulerScheduler is for networks with log(sigma) / 4 instead of a timestep; use euler",
    "edm_dpm++": "EDMDPMSolverMultistepScheduler is for networks with log(sigma) / 4 instead of a timestep; use dpm++",
    "cosine_dpm++": "CosineDPMSolverMultistepScheduler is for networks with log(sigma) / 4; use dpm++",
    "flow_euler": "FlowMatchEulerDiscreteScheduler is for networks trained by flow matching; use euler",
    "consistency": "CMStochasticIterativeScheduler is for consistency models on EDM noise levels; use lcm or tcd",
}
"""Schedulers of diffusers that cannot be used, with the reason."""

_AVERAGING = {
    "PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
}  # fmt: skip
"""They average the directions at both ends of the first step, whose length has no bound where abar is 0."""

_DRAWING = {
    "DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler",
    "TCDScheduler", "SASolverScheduler",
}  # fmt: skip


def scheduler(name: str, steps: int, noise: NoiseSchedule = STABLE_DIFFUSION) -> Any:
    """Return a new diffusers scheduler of `steps` steps for one batch. Most schedulers keep state.

    Timesteps are spaced "trailing" (arXiv 2305.08891) if the scheduler supports it, and "linspace" for the few counts
    at which trailing is wrong in diffusers; the first is the noisiest. Raises InputError for an unknown name, a number
    of steps that does not fit, or a schedule that ends in pure noise (`zero_terminal`) if the scheduler cannot start
    from it.
    """
    import diffusers

    if name not in _KINDS:
        why = f": {UNFIT[name]}" if name in UNFIT else f"; use one of {', '.join(NAMES)}"
        raise InputError(f"scheduler {name!r} is not {'usable' if name in UNFIT else 'known'}{why}")
    if not 1 <= steps <= noise.train_steps:
        raise InputError(f"{steps} sampling steps do not fit a network of {noise.train_steps}; use 1 to all of them")
    kind = _KINDS[name]
    build = getattr(diffusers, kind.name)
    if noise.zero_terminal and kind.name in _AVERAGING:
        raise InputError(f"scheduler {name!r} cannot start from pure noise, as this model needs; use ddim or dpm++")
    zero = "rescale_betas_zero_snr" in inspect.signature(build.__init__).parameters
    betas = noise.options() if zero else noise.options_without_zero()
    built = build(prediction_type="sample" if kind.takes_x0 else "epsilon", **betas, **kind.settings)
    if "timestep_spacing" in built.config:
        built.register_to_config(timestep_spacing=_spacing(steps, noise.train_steps))
    if steps > built.config.get("original_inference_steps", steps):  # lcm and tcd pick from 50 steps; let them have all
        built.register_to_config(original_inference_steps=noise.train_steps)
    built.set_timesteps(steps)
    return built


def _spacing(steps: int, train_steps: int) -> str:
    """Return "trailing", or "linspace" for the counts (61, 103, ...) for which diffusers adds a step at -1."""
    return "trailing" if len(np.arange(train_steps, 0, -train_steps / steps)) == steps else "linspace"


def factory(name: str, steps: int, noise: NoiseSchedule = STABLE_DIFFUSION) -> Callable[[], Any]:
    """Return a function that makes a new scheduler for each batch. The arguments are checked now."""
    scheduler(name, steps, noise)
    return lambda: scheduler(name, steps, noise)


def draws_noise(built: Any) -> bool:
    """Return whether a step of this scheduler draws random noise, and so needs a generator."""
    return type(built).__name__ in _DRAWING or "sde" in built.config.get("algorithm_type", "")


def evaluations(built: Any, last_steps: int | None = None) -> list[float]:
    """Return the falling timesteps of the calls of the denoiser, in all or in the last `last_steps` steps.

    There is one call per step. Schedulers of order 2 make two, except in the last step; pndm makes two at its second
    timestep. Raises ValueError unless 1 <= last_steps <= steps.
    """
    steps: int = built.num_inference_steps
    last_steps = steps if last_steps is None else last_steps
    if not 1 <= last_steps <= steps:
        raise ValueError(f"last_steps is {last_steps}, but the schedule has {steps} steps; give 1 to {steps}")
    timesteps: list[float] = built.timesteps.tolist()
    if type(built).__name__ == "PNDMScheduler":
        last = (timesteps[:1] + timesteps[2:])[-last_steps:]
        return last[:2] + last[1:]
    return timesteps[-(built.order * last_steps - (built.order - 1)) :]


def begin(built: Any, timesteps: list[float]) -> None:
    """Set a new scheduler to begin at the first of these, its last evaluations. Raises ValueError if it was used."""
    if getattr(built, "step_index", None) is not None or getattr(built, "counter", False):
        raise ValueError(f"this {type(built).__name__} has been used; every batch needs a fresh one (see factory)")
    if hasattr(built, "set_begin_index"):
        built.set_begin_index(len(built.timesteps) - len(timesteps))


def step(built: Any, x0: Tensor, seen: Tensor, t: float, x: Tensor, **options: Any) -> Tensor:
    """Return the next x from x and the estimate x0; `seen` is x in the scale of x_t, the input of the denoiser."""
    estimate = x0
    if built.config.prediction_type == "epsilon":
        a = built.alphas_cumprod[round(t)].to(x0)
        estimate = (seen - a.sqrt() * x0) / (1 - a).sqrt()
    following: Tensor = built.step(estimate, t, x, **options).prev_sample
    return following
