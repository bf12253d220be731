"""Guidance of a sampler beside the label. Several guides compose, the first innermost."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medlt.config.base import Strict, Window

Fading = Literal["variance", "fixed", "switch-off"]
FADING = "weight over the steps: with the posterior variance, constant (fixed), or 0 in the less noisy half"
EVERY = "guide each n-th sampling step only; 1 guides all"
WINDOW = "timesteps at which the guide is active, as shares of all timesteps; 1 is pure noise"


WEIGHT = (
    "strength of the guide: how far it moves the finished latent, as a share of its norm; auto: the strength that "
    "`medlt calibrate` chooses; 0 switches it off"
)
CAP = "limit of one move of an estimate, as a share of the latent's norm; a limit that binds is reported"
AUTO = "auto"

Displacement = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]


class Windowed(Strict):
    """A guide that is active at some of the sampler's steps."""

    every: int = Field(5, ge=1, description=EVERY)
    window: Window = Field((0.3, 0.8), description=WINDOW)
    cap: float = Field(2.0, gt=0, description=CAP)


class PublishedUnit(Windowed):
    """A guide whose strength may also be given in the unit of its paper."""

    weight: Annotated[float, Field(ge=0, le=100)] | Literal["auto"] = Field(0.05, description=WEIGHT)
    weight_unit: Literal["displacement", "published"] = Field(
        "displacement", description="unit of the weight; published: w of the paper, a factor of the gradient"
    )

    @model_validator(mode="after")
    def _fits_its_unit(self) -> Self:
        if self.weight_unit == "published" and self.weight == AUTO:
            raise ValueError("weight auto is a displacement; remove weight_unit: published")
        if self.weight_unit == "displacement" and self.weight != AUTO and float(self.weight) > 1:
            raise ValueError(
                f"weight {self.weight} would move a latent by more than its norm; give 0 to 1, or write weight_unit: "
                "published"
            )
        return self


class MinorityGuideConfig(PublishedUnit):
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


class JepaGuideConfig(PublishedUnit):
    """Descent of the JEPA score of a classifier on latents (arXiv 2605.24631)."""

    kind: Literal["jepa"] = Field("jepa", description="towards latents of low density in a classifier's features")
    weighting: Fading = Field("variance", description=FADING)


class LongtailGuideConfig(Windowed):
    """Longtail Guidance (arXiv 2502.01980)."""

    kind: Literal["longtail"] = Field("longtail", description="towards images the guidance classifier is unsure of")
    weight: Displacement = Field(0.05, description=WEIGHT)
    statistic: Literal["variance", "bald", "entropy", "margin", "energy"] = Field(
        "variance", description="measure of the guidance classifier's uncertainty that is raised"
    )
    label_weight: float = Field(
        1.0, ge=0, le=1000, description="weight of the label's cross-entropy, which keeps the finding in the image"
    )
    every: int = Field(5, ge=1, description=EVERY)
    window: Window = Field((1 / 3, 2 / 3), description=WINDOW)
    n_shifts: int = Field(2, ge=0, le=64, description="small shifts of the image over which the gradient is averaged")
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice: less memory, more time, the same images"
    )
    gradient_precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="precision of the decoder in the gradient; auto: bf16 where the device multiplies it "
        "natively. The images themselves are decoded in the precision of the run"
    )  # fmt: skip
    network: bool = Field(False, description="take the gradient through the denoiser too: more exact, much slower")


GuideConfig = Annotated[MinorityGuideConfig | JepaGuideConfig | LongtailGuideConfig, Field(discriminator="kind")]


class Calibration(Strict):
    """How the strength of a guide is chosen: the largest whose images stay near real ones and keep their label.

    Chosen on rows of its own, with seeds of its own; no test image is read.
    """

    rows: int = Field(24, ge=2, le=1000, description="images that are sampled with each strength, and without guidance")
    weights: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.01, 0.02, 0.04, 0.08, 0.16), min_length=1, description="weights that are tried, from weak to strong"
    )
    max_outside: float = Field(
        0.1, ge=0, le=1, description="largest share of images farther from real train images than 95 % of real "
        "validation images are; where unguided images exceed it, their share plus 0.05"
    )  # fmt: skip
    max_label_loss: float = Field(
        0.1, ge=0, le=1, description="largest fall of the verifier's mean probability of the finding, as a share of "
        "that of unguided images"
    )  # fmt: skip

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if list(self.weights) != sorted(set(self.weights)):
            raise ValueError(f"weights {list(self.weights)} do not rise; order them from weak to strong")
        return self
