"""Longtail guidance: images that a classifier is uncertain of, without training it or the diffusion model again.

Hayden et al., "Generative Data Mining with Longtail-Guided Diffusion", arXiv 2502.01980, Algorithm 1: decode the clean
estimate, compute a longtail signal of the guidance classifier, and shift the estimate along its gradient. The signal
and the shift are our completion (`medlt.classify.epistemic`, `medlt.diffusion.decoded_signal`). The objective of a row
with label vector y is

    mean over its target findings of a statistic  +  label_weight * sum over known findings of log p(y_c | image)

The second term is minus the cross-entropy of the classifier. Without it, the easiest way to uncertainty is to lose the
finding.

The images are fitted to the classifier that guides them. Therefore three classifiers are needed: the guidance
classifier, the verifiers of the labels, and evaluation classifiers that are trained from scratch and measure whether
the images help. `medlt.checks.separation` checks that they are different networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.classify.uncertainty import Statistic, statistic
from medlt.diffusion.codec import DifferentiableCodec
from medlt.diffusion.decoded_signal import average_shifts, decoded_signal, displace_estimate
from medlt.diffusion.guidance import guided_levels
from medlt.synthesis.from_noise import FromNoise
from medlt.synthesis.guides import SamplingContext, Strength
from medlt.synthesis.space import Standardises
from medlt.types import Guidance, Signal

GuidanceClassifier: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B,1,H,W] -> logits [B,K] and logits of the members [M,B,K], differentiable, as `medlt.classify.epistemic`."""


def uncertainty_objective(
    guidance_classifier: GuidanceClassifier,
    value: Statistic,
    targets: Tensor,
    labels: Tensor,
    label_weight: float = 1.0,
) -> Signal:
    """Return a signal of images: the mean of `value` over the targets of a row + label_weight * log p(y | image).

    targets: bool [B,K]; labels: [B,K] in [0,1], where NaN is unknown and has no term.
    """
    share = targets / targets.sum(1, keepdim=True)

    def signal(images: Tensor, t: int) -> Tensor:
        base, members = guidance_classifier(images)
        y, known = labels.to(base).nan_to_num(0), ~labels.isnan().to(base.device)
        uncertainty = (value(base, members) * share.to(base)).sum(1)
        cross_entropy = F.binary_cross_entropy_with_logits(base, y, reduction="none")
        return uncertainty - label_weight * torch.where(known, cross_entropy, 0).sum(1)

    return signal


@dataclass(frozen=True, kw_only=True)
class LongtailGuide(Strength):
    """Guide rows towards images that `guidance_classifier` is uncertain of. A `medlt.synthesis.guides.Guide`.

    decode: latents of the backbone -> images [B,1,H,W] in [0,1], differentiable (`differentiable_decoder`)
    weight and the other settings of the strength: as in `Strength`; all guided steps have the same length
    statistic: as in `medlt.classify.uncertainty`
    label_weight: weight of the label's term in the objective
    n_shifts: small shifts of the image over which the gradient is averaged
    extra: columns of findings whose statistic also counts if a row has them
    network: take the gradient through the denoiser too

    A call raises InputError for an unknown statistic, or if the window holds no step of the sampler.
    """

    decode: Callable[[Tensor], Tensor]
    guidance_classifier: GuidanceClassifier
    weight: float = 0.05
    every: int = 5
    window: tuple[float, float] = (1 / 3, 2 / 3)
    statistic: str = "variance"
    label_weight: float = 1.0
    n_shifts: int = 2
    extra: tuple[int, ...] = ()
    network: bool = False
    name: ClassVar[str] = "longtail"

    def __call__(self, context: SamplingContext) -> Guidance:
        if self.weight == 0:
            return lambda denoiser: denoiser
        train_steps = context.backbone.noise.train_steps
        at = guided_levels(context.timesteps, self.every, self.window, train_steps, self.name)
        objective = uncertainty_objective(
            self.guidance_classifier,
            statistic(self.statistic),
            self._targets(context),
            context.labels,
            label_weight=self.label_weight,
        )
        signal = decoded_signal(self.decode, average_shifts(objective, context.seeds.tolist(), self.n_shifts))
        return displace_estimate(signal, self.displaces(context, dict.fromkeys(at, 1.0), self.name), self.network)

    def _targets(self, context: SamplingContext) -> Tensor:
        """Return the findings whose statistic counts, bool [B,K]: the target, and those of `extra` that a row has."""
        labels = context.labels
        extra = torch.zeros(labels.shape[1], dtype=torch.bool, device=labels.device)
        extra[list(self.extra)] = True
        return F.one_hot(context.target, labels.shape[1]).bool() | extra & (labels.nan_to_num(0) > 0.5)


@dataclass(kw_only=True)
class LongtailGuidance(FromNoise):
    """Conditional sampling from noise with a `LongtailGuide`; at weight 0 its images are those of FromNoise."""

    name: ClassVar[str] = "longtail"


def differentiable_decoder(
    codec: DifferentiableCodec, standardiser: Standardises | None = None, gradient_checkpointing: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return a differentiable function from the backbone's latents to images.

    standardiser: for a backbone of standardised latents; gradient_checkpointing: recompute activations in the backward
    pass, which takes more time and less memory.
    """

    def decode(z: Tensor) -> Tensor:
        return codec.picture(z if standardiser is None else standardiser.back(z.cpu()), gradient_checkpointing)

    return decode
