"""How images are made: the section `method`, one model per method.

Defaults are the published ones unless a description says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from medlt.config.base import FilePath, Strict, Window
from medlt.config.guides import GuideConfig, LongtailGuideConfig, MinorityGuideConfig

Scheduler = Literal[
    "ddim", "ddpm", "pndm", "lms", "euler", "euler_a", "heun", "kdpm2", "kdpm2_a", "dpm++", "dpm++karras", "dpm++sde",
    "dpm++single", "deis", "unipc", "sa", "lcm", "tcd",
]  # fmt: skip
SCHEDULER = "diffusers scheduler that makes the denoising steps"
GUIDANCE_SCALE = "scale of classifier-free guidance; 1 is the conditional network alone, 0 the unconditional one"
GUIDANCE_INTERVAL = (
    "timesteps with classifier-free guidance, as shares of all timesteps; 1 is pure noise; elsewhere the conditional "
    "network runs alone, in half the time"
)
GUIDANCE = "guidance besides the label, a list of sections; they compose, the first innermost"


DECODING = (
    "difference: pixels of the real images, plus the decoded change that the denoiser made; plain: the decoded image "
    "alone, which loses what the codec loses. A private run is always plain"
)
IMAGE_SIZE = (
    "side of the images that are made, pixels: real pixels have this resolution and noise, and the decoded change is "
    "enlarged; null: `size`, at which the networks work"
)
FEATHER = "width of the soft edge of what a denoiser changes, and of seam feather, as a share of the side of the image"
SEAM = (
    "edge between the two images: feather, a soft one; poisson, the gradients of the tail image at the brightness of "
    "the head image"
)


class MethodConfig(Strict):
    """A method: of medlt, or of a plug-in. The settings of a plug-in may be a subclass."""

    kind: str = Field("", description="name of the method")


class Sampling(MethodConfig):
    """Sampling from noise under the label vectors of real train images."""

    scheduler: Scheduler = Field("dpm++", description=SCHEDULER)
    num_inference_steps: int = Field(25, ge=1, description="denoising steps")
    guidance_scale: float = Field(3.5, ge=0, le=100, description=GUIDANCE_SCALE)
    guidance_interval: Window = Field((0.0, 1.0), description=GUIDANCE_INTERVAL)
    guidance: tuple[GuideConfig, ...] = Field((), description=GUIDANCE)
    initial_noise_scale: float = Field(
        1.0, gt=0, description="factor of the initial noise: gamma of Boost-and-Skip (arXiv 2502.06516; 1.5 to 2.5 "
        "with scheduler ddpm); 1 is off"
    )  # fmt: skip
    skip_steps: int = Field(0, ge=0, description="first steps to leave out, for Boost-and-Skip; 0 is off")

    @model_validator(mode="after")
    def _skip_fits(self) -> Self:
        if self.skip_steps >= self.num_inference_steps:
            raise ValueError(
                f"skip_steps {self.skip_steps} leaves none of {self.num_inference_steps} steps; lower skip_steps"
            )
        return self


class FromNoiseConfig(Sampling):
    """Classifier-free guidance alone, unless `guidance` lists more."""

    kind: Literal["noise"] = Field("noise", description="sampling from noise")


class Minority(Sampling):
    """Self-guided minority sampling (arXiv 2407.11555)."""

    kind: Literal["minority"] = Field("minority", description="sampling from noise, towards rare images")
    guidance: tuple[GuideConfig, ...] = Field((MinorityGuideConfig(),), description=GUIDANCE)


class Longtail(Sampling):
    """Longtail Guidance (arXiv 2502.01980)."""

    kind: Literal["longtail"] = Field(
        "longtail", description="sampling from noise, towards images a classifier is unsure of"
    )
    guidance: tuple[GuideConfig, ...] = Field((LongtailGuideConfig(),), description=GUIDANCE)


class ClassBalancingConfig(Strict):
    """The class-balancing loss of a denoiser (CBDM, arXiv 2305.00562)."""

    weight: float = Field(1.0, ge=0, description="tau of the paper; 0 is off; start with 0.1 for a pretrained denoiser")
    power: float = Field(
        0.5, ge=0, description="the other label vector is drawn with probability count ** -power of its rarest "
        "finding; published: 0 from scratch, 1 for fine-tuning"
    )  # fmt: skip


class InBandLoss(Strict):
    """The loss that moves samples into the band around real images (L_AID of DiffuLT), on a classifier of latents."""

    weight: float = Field(0.02, ge=0, description="alpha of the paper; 0 is off")
    share: float = Field(0.25, gt=0, le=1, description="share of the training steps that include it")
    window: Window = Field((0.02, 0.6), description="timesteps that include it, as shares of all timesteps")
    estimate: Literal["clean", "published"] = Field(
        "clean", description="which estimate of the image it is computed on; see docs/explanation/diffult.md"
    )


def _several(given: Any) -> Any:
    """Return one number as a tuple of one."""
    return (given,) if isinstance(given, int | float) and not isinstance(given, bool) else given


Share = Annotated[float, Field(gt=0, le=1)]
Strengths = Annotated[tuple[Share, ...], BeforeValidator(_several, json_schema_input_type=Share | tuple[Share, ...])]


class Edit(MethodConfig):
    """Edits of real tail images (SDEdit, arXiv 2108.01073), which keep most of the image and its label."""

    kind: Literal["edit"] = Field("edit", description="edits of real tail images")
    scheduler: Scheduler = Field("ddim", description=SCHEDULER)
    num_inference_steps: int = Field(50, ge=1, description="length of the full schedule, of which the last steps run")
    strength: Strengths = Field(
        (0.2, 0.3, 0.4),
        min_length=1,
        description="share of the steps that run, the last ones; of several values each image uses one, at random",
    )
    mixed: float = Field(
        0.0, ge=0, le=0.5, description="share of another positive image of the finding that is mixed in, at most"
    )
    decoding: Literal["difference", "plain"] = Field("difference", description=DECODING)
    image_size: int | None = Field(None, ge=32, description=IMAGE_SIZE)
    guidance_scale: float = Field(2.0, ge=0, le=100, description=GUIDANCE_SCALE)
    guidance_interval: Window = Field((0.0, 1.0), description=GUIDANCE_INTERVAL)
    guidance: tuple[GuideConfig, ...] = Field((), description=GUIDANCE)


class Diffult(Sampling):
    """DiffuLT (arXiv 2403.05170)."""

    kind: Literal["diffult"] = Field("diffult", description="sampling from noise, with two losses and a filter")
    cbdm: ClassBalancingConfig | None = Field(ClassBalancingConfig(), description="class-balancing loss; null: none")
    in_band_loss: InBandLoss | None = Field(InBandLoss(), description="L_AID of the paper; null: none")


Stage = Literal["mask", "box", "side", "best", "image_prior", "image", "prior", "code"]


class LocaliseConfig(Strict):
    """Where a finding is in an image; see docs/explanation/localisation.md."""

    order: tuple[Stage, ...] = Field(
        ("mask", "box", "side", "best", "image", "code"), min_length=1,
        description="stages, the most trusted first; best: that of image_prior, image, prior and code which validation "
        "rows with a mask or box choose, image_prior without such rows",
    )  # fmt: skip
    networks: int = Field(
        5, ge=0, description="image classifiers whose maps are averaged; 0, and in a private run: those verifiers that "
        "do not check the image"
    )  # fmt: skip
    steps: int | None = Field(
        None, ge=1, description="training steps of each, without an early stop; null: three times those of `classifier`"
    )
    code_steps: int = Field(
        500, ge=0, description="training steps of a new classifier on the finished code; 0: that of the code itself"
    )
    coordinates: Literal["registered", "image"] = Field(
        "registered", description="coordinates of the usual place of a finding; registered: those of the mean "
        "radiograph, which every image is registered to; image, and in a private run: those of the square image"
    )  # fmt: skip
    boxes: FilePath | None = Field(
        None, description="table of boxes for the usual place of findings, of any images, such as "
        "BBox_List_2017.csv.gz; null: the masks and boxes of the train rows alone"
    )  # fmt: skip


class Fusion(MethodConfig):
    """Latent fusion (arXiv 2405.01705): the finding of a tail image in the anatomy of a head image."""

    kind: Literal["fusion"] = Field("fusion", description="tail findings in the anatomy of head images")
    pairing: Literal["saliency", "confusing"] = Field(
        "saliency", description="partner of a tail image: similar in its activation map, or confused by the classifier"
    )
    neighbours: int = Field(
        16, ge=1, description="nearest head images, which a tail image is paired with in turn; published: 3"
    )
    localise: LocaliseConfig = Field(LocaliseConfig(), description="where the tail finding is")
    cam: Literal["gradcam", "hirescam", "layercam"] = Field("gradcam", description="class activation map of the code")
    rule: Literal["tail_only", "tail_first", "published"] = Field(
        "tail_only",
        description="which image a pixel comes from; see docs/explanation/fusion.md",
    )
    area_mean: float = Field(
        0.2, ge=0, le=1, description="mean share of the cells from the tail image, for rule tail_only; a given mask or "
        "box is taken whole"
    )  # fmt: skip
    area_sd: float = Field(0.05, ge=0, description="standard deviation of that share")
    threshold_mean: float = Field(
        0.2, ge=0, le=1, description="mean of the map threshold of an image, for the other rules; published: 0.5"
    )
    threshold_sd: float = Field(0.05, ge=0, description="standard deviation of that threshold; published: 0.1")
    scheduler: Scheduler = Field("ddim", description=SCHEDULER)
    num_inference_steps: int = Field(75, ge=1, description="length of the full schedule, of which the last steps run")
    strength: float = Field(
        5 / 75, gt=0, le=1, description="share of the steps that run, the last ones; published: 5 of 75"
    )
    renoise: bool = Field(
        True, description="add the noise that the first step expects (SDEdit); false: as in the published code"
    )
    guidance_scale: float = Field(3.5, ge=0, le=100, description=GUIDANCE_SCALE)
    guidance_interval: Window = Field(
        (0.2, 1.0), description=f"{GUIDANCE_INTERVAL}. The default leaves out the last steps, where the label hardly "
        "changes an image: the 5 of 75 run the conditional network alone"
    )  # fmt: skip
    guidance: tuple[GuideConfig, ...] = Field((), description=GUIDANCE)
    decoding: Literal["difference", "plain"] = Field("difference", description=DECODING)
    image_size: int | None = Field(None, ge=32, description=IMAGE_SIZE)
    feather: float = Field(0.06, ge=0, lt=1, description=FEATHER)
    seam: Literal["feather", "poisson"] = Field("feather", description=SEAM)
    labels: Literal["measured", "cam_mass", "lesion_carried", "tail", "union"] = Field(
        "measured", description="labels of an image: by the share of a finding that was kept, as far as its map was "
        "measured, otherwise those of the tail image; by that share alone; by the share of its mask or box; those of "
        "the tail image; or the findings of both"
    )  # fmt: skip


class LocaliseWithoutCode(LocaliseConfig):
    """Where a finding is in an image, for a method that needs no sparse code; stage `code` trains one."""

    order: tuple[Stage, ...] = Field(
        ("mask", "box", "side", "best", "image"), min_length=1,
        description="stages, the most trusted first; best: that of image_prior, image and prior which validation rows "
        "with a mask or box choose, image_prior without such rows",
    )  # fmt: skip


class Recompose(MethodConfig):
    """Recomposition: real lesions on other patients, in real pixels; a denoiser refines them if `strength` is not 0."""

    kind: Literal["recompose"] = Field("recompose", description="real lesions on other patients, in real pixels")
    variant: Literal["paste", "half", "lesion", "surroundings"] = Field(
        "paste", description="paste: the lesion of a tail image on a head image; half: the half of a tail image with "
        "the finding, and the other half of a head image; lesion: a head image with a new lesion that the denoiser "
        "draws; surroundings: a tail image whose surroundings of the lesion the denoiser draws again"
    )  # fmt: skip
    localise: LocaliseWithoutCode = Field(LocaliseWithoutCode(), description="where the tail finding is")
    side: Literal["left", "right"] | None = Field(
        None, description="side of the patient with the finding, in all images, for variant half; null: that of each "
        "finding, by its mask, its box, the column side_FINDING or a map"
    )  # fmt: skip
    area_mean: float = Field(
        0.15, gt=0, le=1, description="mean share of the cells that is taken where only a map says where the finding "
        "is; a given mask or box is taken whole"
    )  # fmt: skip
    area_sd: float = Field(0.03, ge=0, description="standard deviation of that share")
    scale: float = Field(
        1.25,
        ge=1,
        le=2,
        description="largest scale of a small lesion, the smallest is 1/scale; a larger one varies less",
    )
    rotation: float = Field(10.0, ge=0, le=180, description="largest rotation of a lesion, degrees")
    shift: float = Field(
        0.1, ge=0, lt=1, description="largest shift of a lesion within the usual place of its finding, as a share of "
        "the side; without a usual place it is not shifted"
    )  # fmt: skip
    reflect: bool = Field(True, description="reflect lesions of findings that have no usual side")
    matched: float = Field(
        0.5, gt=0, le=1, description="share of the possible head images that are compatible with a tail image: those "
        "most like it in brightness and anatomy"
    )  # fmt: skip
    image_size: int | None = Field(None, ge=32, description=IMAGE_SIZE)
    feather: float = Field(0.06, ge=0, lt=1, description=FEATHER)
    seam: Literal["feather", "poisson"] = Field("feather", description=SEAM)
    strength: float = Field(
        0.0, ge=0, le=1, description="share of the denoising steps that run, the last ones; 0: no denoiser, and none "
        "is trained"
    )  # fmt: skip
    scheduler: Scheduler = Field("ddim", description=SCHEDULER)
    num_inference_steps: int = Field(50, ge=1, description="length of the full schedule, of which the last steps run")
    guidance_scale: float = Field(2.0, ge=0, le=100, description=GUIDANCE_SCALE)
    guidance_interval: Window = Field((0.0, 1.0), description=GUIDANCE_INTERVAL)
    guidance: tuple[GuideConfig, ...] = Field((), description=GUIDANCE)

    @model_validator(mode="after")
    def _denoiser_fits(self) -> Self:
        if not self.strength and self.variant in ("lesion", "surroundings"):
            raise ValueError(f"variant {self.variant} needs a denoiser; give a strength above 0, such as 0.6")
        if not self.strength and self.guidance:
            raise ValueError("guidance needs a denoiser; give a strength above 0, or remove guidance")
        if self.side is not None and self.variant != "half":
            raise ValueError(f"side is for variant half, not {self.variant}; remove it")
        return self
