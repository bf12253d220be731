"""Self-guided minority sampling (Um and Ye, arXiv 2407.11555) and JEPA guidance (arXiv 2605.24631), as guides.

| symbol | meaning |
|---|---|
| L(x_t; s) | distance between x0(x_t) and the same estimate noised to level s and denoised; larger = rarer |
| w | published weight of the guidance; 0 changes no bit |
| T | number of timesteps that the network was trained on |
| z | rarity of a row among the real images of its finding, in standard deviations of L |

Both denoisings use the row's label vector, without classifier-free guidance. docs/explanation/minority.md has the
equations and the differences from the papers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.guidance import Fade, Weighting, ascend, compose, displace, guided_levels, mean_shifts, only_at
from medlt.diffusion.jepa import Features, jepa
from medlt.diffusion.signals import Distance, l2, minority, own_noise
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.guides import Guide, SamplingContext, Strength
from medlt.synthesis.space import in_calls
from medlt.types import Guidance, InputError, Signal

PUBLISHED = 0.05
"""Displacement by the published settings under the reference denoiser, for gradients with Gaussian entries in 1,024
dimensions: 0.044 for w = 0.4 with every 5th of 250 ancestral steps, 0.055 for w = 0.2 with every 2nd."""


Unit: TypeAlias = Literal["displacement", "published"]
"""Unit of a weight: the displacement of the finished latent, or the published factor of the normalised gradient."""


@dataclass(frozen=True, kw_only=True)
class SignalGuide(Strength, ABC):
    """A guide that ascends a signal at some steps of the sampler.

    weight_unit: "displacement": as in `Strength`. "published": w of the papers, which scales a gradient with a largest
    entry of 1; then `response` and `cap` have no effect.
    weighting: proportions of the steps, as in `medlt.diffusion.guidance.mean_shifts`
    """

    weight: float = PUBLISHED
    every: int = 5
    window: tuple[float, float] = (0.3, 0.8)
    weight_unit: Unit = "displacement"
    weighting: Weighting = "variance"
    name: ClassVar[str]

    @abstractmethod
    def signal(self, context: SamplingContext) -> Signal:
        """Return the signal to ascend for these rows."""

    def fade(self, context: SamplingContext) -> Fade | None:
        """Return the share of the guidance that each row gets; None: all of it."""
        return None

    def __call__(self, context: SamplingContext) -> Guidance:
        """Return the guidance of these rows, as `medlt.synthesis.guides.Guide`."""
        if self.weight == 0:
            return compose()
        noise = context.backbone.noise
        at = guided_levels(context.timesteps, self.every, self.window, noise.train_steps, self.name)
        shift = mean_shifts(context.timesteps, abar := noise.abar(), self.weighting)
        options: dict[str, Any] = {"signal_denoiser": context.conditional, "fade": self.fade(context)}
        signal = self.signal(context)
        if self.weight_unit == "published":
            return only_at(ascend(signal, self.weight, abar, shift=shift, **options), at)
        return displace(signal, self.displaces(context, {t: shift(t) for t in at}, self.name), **options)


@dataclass(frozen=True)
class ReferenceLevels:
    """Mean and sd of L [K,G] among the real images of each finding, at rising timesteps [G]."""

    timesteps: Tensor
    mean: Tensor
    sd: Tensor

    def z(self, value: Tensor, target: Tensor, t: int) -> Tensor:
        """Return (L - mean) / sd of L [B] at t for target findings [B]; mean and sd are linear between timesteps."""
        last = len(self.timesteps) - 1
        right = int(torch.searchsorted(self.timesteps, t).clamp(min(1, last), last))
        left = max(right - 1, 0)
        span = float(self.timesteps[right] - self.timesteps[left]) or 1.0
        share = min(max((t - float(self.timesteps[left])) / span, 0.0), 1.0)
        mean, sd = (torch.lerp(table[:, left], table[:, right], share).to(value) for table in (self.mean, self.sd))
        return (value - mean[target]) / sd[target].clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class MinorityGuide(SignalGuide):
    """Ascend L(x_t; s) of the conditional estimate, with s = `probe` T.

    distance: `medlt.diffusion.signals.l2` or `between(features)`; reference: levels of real images. With a reference,
    the guidance of a row falls from all at z = rare - 1 to none at z = rare, so that an image that is rare enough for
    its finding is not guided further.
    """

    probe: float = 0.8
    distance: Distance = l2
    reference: ReferenceLevels | None = None
    rare: float = 2.0
    name: ClassVar[str] = "minority"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.probe < 1:
            raise InputError(f"MinorityGuide: probe is {self.probe}; give a share of the timesteps between 0 and 1")

    def signal(self, context: SamplingContext) -> Signal:
        """Return L(x_t; s), with noise from the seeds of the rows."""
        noise, probes = context.backbone.noise, own_noise(context.seeds.tolist(), "minority probe")
        return minority(context.conditional, probes, noise.abar(), int(self.probe * noise.train_steps), self.distance)

    def fade(self, context: SamplingContext) -> Fade | None:
        """Return (rare - z) clamped to [0,1], or None without a reference."""
        levels = self.reference
        if levels is None:
            return None
        return lambda value, t: (self.rare - levels.z(value, context.target, t)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class JepaGuide(SignalGuide):
    """Descend the JEPA score of `features`, a differentiable function [B,C,h,w] -> [B,D] (`medlt.diffusion.jepa`)."""

    features: Features
    top: int = 3
    extra: int = 2
    powers: int = 2
    name: ClassVar[str] = "jepa"

    def signal(self, context: SamplingContext) -> Signal:
        """Return minus the score, with a sketch from the seeds of the rows."""
        return jepa(self.features, own_noise(context.seeds.tolist(), "jepa sketch"), self.top, self.extra, self.powers)


@dataclass(kw_only=True)
class MinoritySampling(FromNoise):
    """FromNoise with minority guidance; at weight 0 its images are those of FromNoise, bit for bit."""

    guidance: tuple[Guide, ...] = (MinorityGuide(),)
    name: ClassVar[str] = "minority"


def reference_levels(
    backbone: Backbone,
    latents: Tensor,
    conditions: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    probe: float = 0.8,
    distance: Distance = l2,
    at: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    pooled: float = 5.0,
    batch_size: int = 32,
) -> ReferenceLevels:
    """Return the levels of L among real train images, as the sampler computes L.

    latents [N,C,h,w] in the backbone's space; conditions [N,...]; labels [N,K] (1 = has the finding, NaN = unknown and
    left out); seeds: one a row, from its uid; at: noise levels, as shares of T; pooled: number of images of the overall
    level that are added to each finding, which draws findings with few images towards all images. An image counts for
    every finding that it has. Raises InputError without rows.
    """
    if not len(latents):
        raise InputError("minority reference: there are no train images; give the latents of at least one")
    noise, rising = backbone.noise, sorted({int(share * (backbone.noise.train_steps - 1)) for share in at})
    device = backbone.device
    measured = in_calls(_measured(backbone, rising, int(probe * noise.train_steps), distance), device, batch_size)
    value = measured(latents.to(device), conditions.to(device), torch.tensor([int(seed) for seed in seeds])).cpu()
    mean, sd = _pooled(value.double(), (labels.cpu() == 1).double(), pooled)
    return ReferenceLevels(torch.tensor(rising), mean.float(), sd.float())


def _measured(backbone: Backbone, rising: list[int], t_probe: int, distance: Distance) -> Callable[..., Tensor]:
    """Return a function from latents, conditions and seeds of B rows to their L [B,G] at the rising timesteps."""
    abar = backbone.noise.abar()

    @torch.no_grad()
    def measured(z: Tensor, condition: Tensor, seeds: Tensor) -> Tensor:
        denoiser, own = backbone.denoiser(condition), own_noise(seeds.tolist(), "minority level")
        signal = minority(denoiser, own_noise(seeds.tolist(), "minority probe"), abar, t_probe, distance)
        values: list[Tensor] = []
        for t in rising:
            a = abar[t].to(z)
            values.append(signal(denoiser(a.sqrt() * z + (1 - a).sqrt() * own(z, t), t), t))
        return torch.stack(values, 1)

    return measured


def _pooled(value: Tensor, has: Tensor, pooled: float) -> tuple[Tensor, Tensor]:
    """Return mean and sd [K,G] of value [N,G] over the rows with each finding [N,K] and `pooled` overall rows."""
    count = has.sum(0)[:, None] + pooled
    mean = (has.T @ value + pooled * value.mean(0)) / count
    square = (has.T @ value.square() + pooled * value.square().mean(0)) / count
    return mean, (square - mean.square()).clamp_min(0).sqrt()
