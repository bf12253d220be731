"""Self-guided minority sampling (Um and Ye, arXiv 2407.11555) and JEPA guidance (arXiv 2605.24631), as guides.

| symbol | meaning |
|---|---|
| L(x_t; s) | distance between x0(x_t) and its copy sent back to noise level s and denoised; larger = rarer |
| w | weight of the guidance; 0 is none, bit for bit |
| T | timesteps the network was trained on |
| z | how rare a row is among its finding's real images, in standard deviations of L |

Both denoisings are told the row's label vector, and classifier-free guidance stays out of the metric. The equations,
and what differs from the papers, are in docs/explanation/minority.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.diffusion.guidance import Fade, Schedule, ascend, compose, guided_levels, mean_shifts, only_at
from medlt.diffusion.jepa import Features, jepa
from medlt.diffusion.signals import Distance, l2, minority, own_noise
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.guides import Guide, SamplingContext
from medlt.synthesis.space import in_calls
from medlt.types import Guidance, InputError, Signal


@dataclass(frozen=True, kw_only=True)
class Intermittent(ABC):
    """A guide that ascends a signal at every `every`-th of the sampler's levels inside `window` (shares of T).

    `schedule`, see `medlt.diffusion.guidance.mean_shifts`. Raises InputError for a setting out of its range.
    """

    weight: float = 0.4
    every: int = 5
    window: tuple[float, float] = (0.3, 0.8)
    schedule: Schedule = "variance"
    name: ClassVar[str]

    def __post_init__(self) -> None:
        low, high = self.window
        if self.weight < 0 or self.every < 1 or not 0 <= low < high <= 1:
            raise InputError(
                f"{type(self).__name__}: weight {self.weight}, every {self.every}, window {self.window}; "
                "give a weight of 0 or more, every 1 or more, and 0 <= low < high <= 1"
            )

    @abstractmethod
    def signal(self, told: SamplingContext) -> Signal:
        """What is ascended for these rows."""

    def fade(self, told: SamplingContext) -> Fade | None:
        """What share of the guidance a row gets; None: all of it."""
        return None

    def __call__(self, told: SamplingContext) -> Guidance:
        """See `medlt.synthesis.guides.Guide`."""
        if self.weight == 0:
            return compose()
        noise = told.backbone.noise
        at = guided_levels(told.timesteps, self.every, self.window, noise.train_steps, self.name)
        shift = mean_shifts(told.timesteps, abar := noise.abar(), self.schedule)
        fade, signal = self.fade(told), self.signal(told)
        return only_at(ascend(signal, self.weight, abar, signal_denoiser=told.conditional, shift=shift, fade=fade), at)


@dataclass(frozen=True)
class Levels:
    """How rare the real images of each finding are: mean and sd of L, [K,G], at rising timesteps [G]."""

    timesteps: Tensor
    mean: Tensor
    sd: Tensor

    def z(self, value: Tensor, target: Tensor, t: int) -> Tensor:
        """L [B] at t, among the images of each row's target finding [B]: (L - mean) / sd, linear between timesteps."""
        last = len(self.timesteps) - 1
        right = int(torch.searchsorted(self.timesteps, t).clamp(min(1, last), last))
        left = max(right - 1, 0)
        span = float(self.timesteps[right] - self.timesteps[left]) or 1.0
        share = min(max((t - float(self.timesteps[left])) / span, 0.0), 1.0)
        mean, sd = (torch.lerp(table[:, left], table[:, right], share).to(value) for table in (self.mean, self.sd))
        return (value - mean[target]) / sd[target].clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class MinorityGuide(Intermittent):
    """Ascends L(x_t; s) of the conditional estimate, s = `probe` T.

    distance: `signals.l2`, or `signals.between(features)`. With a `reference` a row's guidance falls from whole at
    z = rare - 1 to none at z = rare: an image already rare enough for its finding is pushed no further.
    """

    probe: float = 0.8
    distance: Distance = l2
    reference: Levels | None = None
    rare: float = 2.0
    name: ClassVar[str] = "minority"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.probe < 1:
            raise InputError(f"MinorityGuide: probe {self.probe}; give a share of all timesteps between 0 and 1")

    def signal(self, told: SamplingContext) -> Signal:
        """L(x_t; s), with noise of the rows' own."""
        noise, probes = told.backbone.noise, own_noise(told.seeds.tolist(), "minority probe")
        return minority(told.conditional, probes, noise.abar(), int(self.probe * noise.train_steps), self.distance)

    def fade(self, told: SamplingContext) -> Fade | None:
        """(rare - z) cut to [0,1], or None without a reference."""
        levels = self.reference
        if levels is None:
            return None
        return lambda value, t: (self.rare - levels.z(value, told.target, t)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class JepaGuide(Intermittent):
    """Descends the JEPA score of `features`, differentiable latents [B,C,h,w] -> [B,D]; `medlt.diffusion.jepa`."""

    features: Features
    top: int = 3
    extra: int = 2
    powers: int = 2
    name: ClassVar[str] = "jepa"

    def signal(self, told: SamplingContext) -> Signal:
        """Minus the score, with a sketch of the rows' own."""
        return jepa(self.features, own_noise(told.seeds.tolist(), "jepa sketch"), self.top, self.extra, self.powers)


@dataclass(kw_only=True)
class MinoritySampling(FromNoise):
    """FromNoise with minority guidance; at weight 0 its images are FromNoise's, bit for bit."""

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
) -> Levels:
    """The levels of L among real train images, at noise levels `at` (shares of T), as the sampler will see it.

    latents [N,C,h,w] in the backbone's space, conditions [N,...], labels [N,K] (1 = has the finding, NaN = unknown and
    left out), seeds one a row, as of its uid. An image counts for each finding it has. A finding with few images is
    drawn towards all images: `pooled` images of the overall level count beside its own. Raises InputError without rows.
    """
    if not len(latents):
        raise InputError("minority reference: no train image is given; give latents of at least one")
    noise, rising = backbone.noise, sorted({int(share * (backbone.noise.train_steps - 1)) for share in at})
    where = backbone.device
    measured = in_calls(_measured(backbone, rising, int(probe * noise.train_steps), distance), where, batch_size)
    value = measured(latents.to(where), conditions.to(where), torch.tensor([int(seed) for seed in seeds])).cpu()
    mean, sd = _pooled(value.double(), (labels.cpu() == 1).double(), pooled)
    return Levels(torch.tensor(rising), mean.float(), sd.float())


def _measured(backbone: Backbone, rising: list[int], t_probe: int, distance: Distance) -> Callable[..., Tensor]:
    """L [B,G] of latents, conditions and seeds of B rows, noised to each of these timesteps."""
    abar = backbone.noise.abar()

    @torch.no_grad()
    def measured(z: Tensor, condition: Tensor, seeds: Tensor) -> Tensor:
        denoiser, own = backbone.denoiser(condition), own_noise(seeds.tolist(), "minority level")
        signal = minority(denoiser, own_noise(seeds.tolist(), "minority probe"), abar, t_probe, distance)
        found: list[Tensor] = []
        for t in rising:
            a = abar[t].to(z)
            found.append(signal(denoiser(a.sqrt() * z + (1 - a).sqrt() * own(z, t), t), t))
        return torch.stack(found, 1)

    return measured


def _pooled(value: Tensor, has: Tensor, pooled: float) -> tuple[Tensor, Tensor]:
    """Mean and sd [K,G] of value [N,G] over the rows that have each finding [N,K], beside `pooled` overall rows."""
    count = has.sum(0)[:, None] + pooled
    mean = (has.T @ value + pooled * value.mean(0)) / count
    square = (has.T @ value.square() + pooled * value.square().mean(0)) / count
    return mean, (square - mean.square()).clamp_min(0).sqrt()
