"""Guidance of a sampler beside the label. Several guides compose, the first innermost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medlt.config.base import Strict, Window

Fading = Literal["variance", "fixed", "switch-off"]
FADING = "weight over the steps: with the posterior variance, constant (fixed), or 0 in the less noisy half"
EVERY = "guide each n-th sampling step only; 1 guides all"
WINDOW = "timesteps at which the guide is active, as shares of all timesteps; 1 is pure noise"


class Windowed(Strict):
    """A guide that is active at some of the sampler's steps."""

    weight: float = Field(0.4, ge=0, le=100, description="strength of the guide; 0 switches it off")
    every: int = Field(5, ge=1, description=EVERY)
    window: Window = Field((0.3, 0.8), description=WINDOW)


class MinorityGuideConfig(Windowed):
    """Self-guided minority sampling (arXiv 2407.11555)."""

    kind: Literal["minority"] = Field("minority", description="towards images that are rare for their finding")
    probe: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="s of the paper: noise level of the second estimate, as a share of all timesteps",
    )
    weighting: Fading = Field("variance", description=FADING)
    distance: Literal["l2", "features"] = Field(
        "l2", description="distance between the two estimates: of latents, or of features of a classifier on latents"
    )
    reference: bool = Field(True, description="stop guiding an image that is already rare enough for its finding")
    rare: float = Field(
        2.0, description="what is rare enough: standard deviations above the finding's real train images"
    )


class JepaGuideConfig(Windowed):
    """Descent of the JEPA score of a classifier on latents (arXiv 2605.24631)."""

    kind: Literal["jepa"] = Field("jepa", description="towards latents of low density in a classifier's features")
    weighting: Fading = Field("variance", description=FADING)


class LongtailGuideConfig(Windowed):
    """Longtail Guidance (arXiv 2502.01980)."""

    kind: Literal["longtail"] = Field("longtail", description="towards images the guidance classifier is unsure of")
    weight: float = Field(
        0.02, ge=0, le=1, description="length of a guidance step as a share of the latent's length; 0 switches it off"
    )
    statistic: Literal["variance", "bald", "entropy", "margin", "energy"] = Field(
        "variance", description="measure of the guidance classifier's uncertainty that is raised"
    )
    label_weight: float = Field(
        1.0, ge=0, le=1000, description="weight of the label's cross-entropy, which keeps the finding in the image"
    )
    every: int = Field(3, ge=1, description=EVERY)
    window: Window = Field((1 / 3, 2 / 3), description=WINDOW)
    cap: float = Field(0.2, gt=0, description="limit of all guidance steps together, as a share of the latent's length")
    n_shifts: int = Field(2, ge=0, le=64, description="small shifts of the image over which the gradient is averaged")
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice: less memory, more time, the same images"
    )
    network: bool = Field(False, description="take the gradient through the denoiser too: more exact, much slower")


GuideConfig = Annotated[MinorityGuideConfig | JepaGuideConfig | LongtailGuideConfig, Field(discriminator="kind")]
