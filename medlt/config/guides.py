"""What guides a sampler beside the label: see docs/explanation. Guides of one list compose, the first innermost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medlt.config.base import Strict, Window


class Windowed(Strict):
    """A guide at every `every`-th of the sampler's steps whose t lies within `window`, as shares of all timesteps."""

    weight: float = Field(0.4, ge=0, le=100, description="0 is off, bit for bit")
    every: int = Field(5, ge=1)
    window: Window = (0.3, 0.8)


class MinorityGuideConfig(Windowed):
    """Self-guided minority sampling (arXiv 2407.11555)."""

    kind: Literal["minority"] = "minority"
    probe: float = Field(0.8, gt=0, lt=1, description="s, the noise level an estimate is sent back to, share of T")
    schedule: Literal["variance", "fixed", "switch-off"] = "variance"
    distance: Literal["l2", "features"] = Field("l2", description="features: of a classifier on latents")
    reference: bool = Field(True, description="hold back what is rare enough for its finding")
    rare: float = Field(2.0, description="that rare: standard deviations above the finding's real train images")


class JepaGuideConfig(Windowed):
    """Descent of the JEPA score of a classifier on latents (arXiv 2605.24631)."""

    kind: Literal["jepa"] = "jepa"
    schedule: Literal["variance", "fixed", "switch-off"] = "variance"


class LongtailGuideConfig(Windowed):
    """Longtail Guidance (arXiv 2502.01980)."""

    kind: Literal["longtail"] = "longtail"
    weight: float = Field(0.02, ge=0, le=1, description="of the gradient, as long as the latent; 0 is off, bit for bit")
    statistic: Literal["variance", "bald", "entropy", "margin", "energy"] = "variance"
    label_weight: float = Field(
        1.0, ge=0, le=1000, description="weight of the label's cross-entropy, which keeps the finding there"
    )
    every: int = Field(3, ge=1)
    window: Window = (1 / 3, 2 / 3)
    cap: float = Field(0.2, gt=0, description="the most that all guided steps move a latent, as a share of it")
    n_shifts: int = Field(2, ge=0, le=64, description="small moves of the image that the gradient is averaged over")
    gradient_checkpointing: bool = Field(False, description="compute activations twice: less memory, more time")
    network: bool = Field(False, description="take the gradient through the denoiser too")


GuideConfig = Annotated[MinorityGuideConfig | JepaGuideConfig | LongtailGuideConfig, Field(discriminator="kind")]
