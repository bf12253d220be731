"""Longtail guidance: images that a given predictor does not know, without retraining it or the diffusion model.

Hayden et al., "Generative Data Mining with Longtail-Guided Diffusion", arXiv 2502.01980, Algorithm 1: decode the clean
estimate, take a longtail signal of the predictor, bias the estimate with its gradient. The signal and the bias are our
completion (`medlt.classify.epistemic`, `medlt.diffusion.through`). The objective of a row with label vector y:

    mean over its target findings of a statistic  +  anchor * sum over known findings of log p(y_c | image)

The anchor is minus the cross-entropy of the predictor: without it the easiest way to be uncertain is to lose the label.

The images please the predictor they were made against. So three classifiers are needed: A guides, B verifies the
labels, C, trained from scratch, reports whether the images help; `medlt.checks.apart` holds that they are three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.classify.epistemic import Statistic, statistic
from medlt.diffusion.codec import AutoencoderCodec
from medlt.diffusion.decoded_signal import ascend_estimate, average_shifts, decoded_signal
from medlt.diffusion.guidance import guided_levels, only_at
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.guides import SamplingContext
from medlt.synthesis.space import Standardises
from medlt.types import Guidance, Signal

Predictor: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B,1,H,W] -> logits [B,K] and members' logits [M,B,K], differentiable: a medlt.classify Epistemic."""


def objective(
    guidance_classifier: Predictor, value: Statistic, targets: Tensor, labels: Tensor, label_weight: float = 1.0
) -> Signal:
    """Over images: the mean of `value` over each row's targets, bool [B,K], plus anchor x log p(y | image).

    labels [B,K] in [0,1], NaN where nothing is known and nothing is held.
    """
    share = targets / targets.sum(1, keepdim=True)

    def look(images: Tensor, t: int) -> Tensor:
        base, members = guidance_classifier(images)
        told, known = labels.to(base).nan_to_num(0), ~labels.isnan().to(base.device)
        wanted = (value(base, members) * share.to(base)).sum(1)
        held = F.binary_cross_entropy_with_logits(base, told, reduction="none")
        return wanted - label_weight * torch.where(known, held, 0).sum(1)

    return look


@dataclass(frozen=True)
class LongtailGuide:
    """Guides rows towards what `guidance_classifier` does not know of their findings. A medlt.synthesis.guides.Guide.

    decode: latents as the backbone has them -> images [B,1,H,W] in [0,1], differentiable (`pictures`). weight: how far
    one guided step moves an estimate, a share of its norm (0.01 to 0.05); 0 is the identity. cap: the most that all
    guided steps together move it, the same share. statistic: see `medlt.classify.epistemic`. anchor: weight of the
    label. Guided are every `every`-th of the sampler's levels with t inside `window`, a share of the trained timesteps.
    shifts: small moves of the image that the gradient is averaged over. also: columns of further findings whose
    statistic counts where a row has them. network: the gradient passes the denoiser too.

    Raises InputError, when asked to guide, for an unknown statistic or a window without a step of the sampler.
    """

    decode: Callable[[Tensor], Tensor]
    guidance_classifier: Predictor
    weight: float = 0.02
    statistic: str = "variance"
    label_weight: float = 1.0
    every: int = 3
    window: tuple[float, float] = (1 / 3, 2 / 3)
    cap: float = 0.2
    n_shifts: int = 2
    also: tuple[int, ...] = ()
    network: bool = False

    def __call__(self, told: SamplingContext) -> Guidance:
        if self.weight == 0:
            return lambda denoiser: denoiser
        train_steps = told.backbone.noise.train_steps
        at = guided_levels(told.timesteps, self.every, self.window, train_steps, "longtail")
        look = objective(
            self.guidance_classifier,
            statistic(self.statistic),
            self._targets(told),
            told.labels,
            label_weight=self.label_weight,
        )
        signal = decoded_signal(self.decode, average_shifts(look, told.seeds.tolist(), self.n_shifts))
        return only_at(ascend_estimate(signal, min(self.weight, self.cap / len(at)), self.network), at)

    def _targets(self, told: SamplingContext) -> Tensor:
        """Findings whose statistic counts, bool [B,K]: the target, and those of `also` that a row has."""
        extra = torch.zeros(told.labels.shape[1], dtype=torch.bool, device=told.labels.device)
        extra[list(self.also)] = True
        one = F.one_hot(told.target, told.labels.shape[1]).bool()
        return one | extra & (told.labels.nan_to_num(0) > 0.5)


@dataclass(kw_only=True)
class LongtailGuidance(FromNoise):
    """Conditional sampling from noise, a `LongtailGuide` among its `guides`; at weight 0 the images of FromNoise."""

    name: ClassVar[str] = "longtail"


def pictures(
    codec: AutoencoderCodec, standardiser: Standardises | None = None, checkpointing: bool = False
) -> Callable[[Tensor], Tensor]:
    """Latents of the backbone to images, differentiable; `standardiser` where the backbone's are standardised ones.

    checkpointing: as `checkpointed` of the codec's `picture`.
    """

    def decode(z: Tensor) -> Tensor:
        return codec.picture(z if standardiser is None else standardiser.back(z.cpu()), checkpointing)

    return decode
