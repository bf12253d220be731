"""What is made of it, how it is checked and judged, and the whole recipe.

Defaults are the published ones (arXiv 2405.01705 for fusion) unless the field says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Tag, model_validator

from medlt.config.ablation import Ablation
from medlt.config.base import Strict, Window, by_kind
from medlt.config.data import Data
from medlt.config.evaluation import EvaluationConfig
from medlt.config.guides import GuideConfig, LongtailGuide, MinorityGuide
from medlt.config.learning import ClassifierConfig, CodecConfig, DenoiserConfig, SparseConfig, UNetConfig
from medlt.config.privacy import Privacy

Scheduler = Literal[
    "ddim", "ddpm", "pndm", "lms", "euler", "euler_a", "heun", "kdpm2", "kdpm2_a", "dpm++", "dpm++karras", "dpm++sde",
    "dpm++single", "deis", "unipc", "sa", "lcm", "tcd",
]  # fmt: skip


class Sampling(Strict):
    """Sampling from noise under the label vectors of real train rows."""

    scheduler: Scheduler = "dpm++"
    steps: int = Field(25, ge=1)
    guidance: float = Field(
        3.5, ge=0, le=100, description="of classifier-free guidance; 1 is the conditional network alone"
    )
    guides: tuple[GuideConfig, ...] = ()
    boost: float = Field(
        1.0, gt=0, description="gamma of Boost-and-Skip (arXiv 2502.06516), 1.5-2.5 with ddpm; 1 is off"
    )
    skip: int = Field(0, ge=0, description="first steps left out, of Boost-and-Skip")

    @model_validator(mode="after")
    def _skip_fits(self) -> Self:
        if self.skip >= self.steps:
            raise ValueError(f"skip {self.skip} leaves none of {self.steps} steps; lower skip")
        return self


class FromNoise(Sampling):
    """Nothing but classifier-free guidance, unless guides are given."""

    kind: Literal["noise"] = "noise"


class Minority(Sampling):
    """Self-guided minority sampling (arXiv 2407.11555)."""

    kind: Literal["minority"] = "minority"
    guides: tuple[GuideConfig, ...] = (MinorityGuide(),)


class Longtail(Sampling):
    """Longtail Guidance (arXiv 2502.01980)."""

    kind: Literal["longtail"] = "longtail"
    guides: tuple[GuideConfig, ...] = (LongtailGuide(),)


class ClassBalancing(Strict):
    """The class-balancing loss of a denoiser (CBDM, arXiv 2305.00562)."""

    weight: float = Field(1.0, ge=0, description="tau; 0 is off; begin with 0.1 on a pretrained denoiser")
    power: float = Field(0.5, ge=0, description="y' is drawn by its rarest finding's count to the -power; 0 from "
                         "scratch and 1 for fine-tuning as published")  # fmt: skip


class InBandLoss(Strict):
    """The loss that moves samples into the band around real images (DiffuLT's L_AID) on a classifier of latents."""

    weight: float = Field(0.02, ge=0, description="alpha; 0 is off")
    share: float = Field(0.25, gt=0, le=1, description="of the training steps")
    window: Window = Field((0.02, 0.6), description="timesteps it is taken at, shares of T")
    estimate: Literal["clean", "published"] = Field("clean", description="see docs/explanation/diffult.md")


class Edit(Strict):
    """Image-guided edits of real tail images (SDEdit, arXiv 2108.01073): the label-safe end of fusion."""

    kind: Literal["edit"] = "edit"
    scheduler: Scheduler = "ddim"
    steps: int = Field(50, ge=1, description="N, the length of the full schedule")
    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.1, 0.2, 0.3, 0.4), min_length=1, description="shares of its last steps that are run, each image one"
    )
    mixed: float = Field(0.0, ge=0, le=0.5, description="the most that another positive of the finding is mixed in")
    guidance: float = Field(2.0, ge=0, le=100)
    guides: tuple[GuideConfig, ...] = ()


class Diffult(Sampling):
    """DiffuLT (arXiv 2403.05170)."""

    kind: Literal["diffult"] = "diffult"
    cbdm: ClassBalancing | None = ClassBalancing()
    aid: InBandLoss | None = InBandLoss()


class Fusion(Strict):
    """Latent fusion (arXiv 2405.01705)."""

    kind: Literal["fusion"] = "fusion"
    pairing: Literal["saliency", "confusing"] = "saliency"
    neighbours: int = Field(3, ge=1)
    cam: Literal["gradcam", "hirescam", "layercam"] = "gradcam"
    rule: Literal["tail_first", "published"] = Field("tail_first", description="see synthesis.fuse")
    threshold_mean: float = Field(0.2, ge=0, le=1, description="published: 0.5")
    threshold_sd: float = Field(0.05, ge=0, description="published: 0.1")
    scheduler: Scheduler = "ddim"
    steps: int = Field(75, ge=1, description="N, the length of the full schedule")
    keep: int = Field(5, ge=1, description="k, how many of its last steps are run")
    renoise: bool = Field(True, description="add the noise step N-k expects (SDEdit); False is the published code")
    guidance: float = Field(3.5, ge=0, le=100)
    guides: tuple[GuideConfig, ...] = ()
    labels: Literal["cam_mass", "tail", "union"] = "cam_mass"

    @model_validator(mode="after")
    def _keep_fits(self) -> Self:
        if self.keep > self.steps:
            raise ValueError(f"keep {self.keep} is more than the {self.steps} steps there are; lower keep")
        return self


Method = Annotated[
    Annotated[Fusion, Tag("fusion")]
    | Annotated[FromNoise, Tag("noise")]
    | Annotated[Edit, Tag("edit")]
    | Annotated[Minority, Tag("minority")]
    | Annotated[Longtail, Tag("longtail")]
    | Annotated[Diffult, Tag("diffult")],
    by_kind("fusion"),
]


class Need(Strict):
    """How much of the tail to fill."""

    tail_below: int = Field(100, ge=1, description="a finding with fewer train positives is tail")
    head_above: int = Field(1000, ge=1, description="a finding with more is head; if none has, thirds are taken")
    target: int = Field(100, ge=1, description="train positives wanted for each tail finding")
    times: float | None = Field(
        None, gt=1, le=100, description="in place of target: so many times the positives there are"
    )
    most: int = Field(500, ge=1, description="never more than this many images a finding")
    candidates: int = Field(2, ge=1, description="candidates made for each wanted image; the judge keeps the best")
    refills: int = Field(
        0, ge=0, le=100, description="how often a wanted image of which no candidate passed is tried again"
    )


class InBand(Strict):
    """How far from real positives an image may lie; beyond it is out of distribution (DiffuLT, arXiv 2403.05170)."""

    form: Literal["neighbours", "centre"] = Field("neighbours", description="centre: the published one")
    k: int = Field(5, ge=1)
    quantile: float = Field(0.95, gt=0, le=1, description="of held-out positives' distance, the width of one band")
    limit: float = Field(2.0, gt=0, description="bands that are kept")


class NearCopy(Strict):
    """Drops images that lie nearer to one real train image than validation images do."""

    false_positive: float = Field(0.02, gt=0, lt=1, description="share of unseen real images it would drop")
    steps: int = Field(250, ge=1, description="training of the embedding that images are compared in")


class Checks(Strict):
    """What an image must pass before it is kept."""

    folds: int = Field(3, ge=2, description="patient folds of the train split; a judge never saw its parents' fold")
    quantile: float = Field(0.5, gt=0, lt=1, description="threshold: this quantile of the judge on held-out positives")
    black_below: float = Field(0.02, ge=0, le=1, description="an image of lower standard deviation is called flat")
    duplicate_above: float = Field(0.995, ge=0, le=1, description="correlation with another image that makes a copy")
    in_band: InBand | None = Field(None, description="on for diffult unless it is null")
    near_copy: NearCopy | None = Field(
        None, description="on, unless it is null, for methods that begin with noise; a private run needs none"
    )


METHOD_OF = {"fusion": "fusion", "ablation": "fusion", "finetune": "noise"}
METHOD_OF |= {name: name for name in ("noise", "edit", "diffult", "minority", "longtail")}
FROM_NOISE = ("noise", "diffult", "minority", "longtail")
"""Recipes that read no pixel of a real image when they make one, so that one that looks alike should not be there."""


class RunConfig(Strict):
    """One recipe, end to end."""

    recipe: Literal["fusion", "noise", "edit", "diffult", "minority", "longtail", "finetune", "ablation"] = "fusion"
    out: Path
    learnt: Path | None = Field(None, description="folder of what is learnt, shared by runs on one collection")
    format: Literal["png", "dicom"] = Field("png", description="of kept images; dicom: in dicom/, beside the PNG")
    seed: int = Field(0, ge=0)
    size: int = Field(128, ge=32, description="side of the square images, px")
    threads: int | None = Field(None, ge=1, description="torch threads; equal bytes need an equal number")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the denoiser and the codec run")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the denoiser and codec when sampling")
    compile: bool | Literal["measure"] = Field(False, description="torch.compile; measure: if it is faster, on a GPU")
    cuda_graphs: bool = False
    data: Data
    skip_unreadable: bool = Field(False, description="go on without images that cannot be read, and list them")
    codec: CodecConfig
    latents: Literal["standardised", "as_coded"] = Field(
        "standardised", description="as_coded: without statistics of the train split; private runs always are"
    )
    sparse: SparseConfig = SparseConfig()
    denoiser: DenoiserConfig = UNetConfig()
    method: Method = Fusion()
    need: Need = Need()
    checks: Checks = Checks()
    classifier: ClassifierConfig = ClassifierConfig()
    predictor: ClassifierConfig | None = Field(
        None, description="what longtail guidance asks; default: the classifier's settings, another network"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    ablation: Ablation | None = Field(None, description="of recipe ablation: what is varied")
    privacy: Privacy | None = None

    @model_validator(mode="before")
    @classmethod
    def _own_method(cls, given: Any) -> Any:
        """A recipe whose config names no method has its own, and the checks that its images call for."""
        if not isinstance(given, dict) or given.get("recipe", "fusion") not in list(METHOD_OF):
            return given
        method = {} if given.get("method") is None else given["method"]
        if not isinstance(method, dict):
            return given
        recipe, checks = given.get("recipe", "fusion"), given.get("checks") or {}
        if isinstance(checks, dict):
            private = given.get("privacy") is not None
            usual: dict[str, Any] = {"in_band": {}} if recipe == "diffult" else {}
            usual |= {"near_copy": {}} if recipe in FROM_NOISE and not private else {}
            given = {**given, "checks": usual | checks} if usual else given
        return {**given, "method": {"kind": METHOD_OF[recipe]} | method}

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.method.kind != METHOD_OF[self.recipe]:
            raise ValueError(f"recipe {self.recipe} has method {METHOD_OF[self.recipe]}, not {self.method.kind}")
        if (self.recipe == "ablation") != (self.ablation is not None):
            raise ValueError("recipe ablation and the section ablation go together: give both, or neither")
        if self.evaluation.chosen is not None:
            raise ValueError("evaluation.chosen: one arm of a recipe has synthetic images, and it is decided on")
        return self

    @model_validator(mode="after")
    def _private_can_be(self) -> Self:
        if self.privacy is None:
            return self
        if self.recipe in ("diffult", "ablation"):
            raise ValueError(f"privacy: recipe {self.recipe} weighs losses by the classes of all; use recipe: noise")
        if self.denoiser.balance is not None:
            raise ValueError("privacy: denoiser.balance draws patients by their findings; leave it out")
        return self

    @property
    def blind(self) -> bool:
        """Whether images are made without a look at any real row: label vectors and numbers are not theirs either."""
        return self.privacy is not None and self.method.kind not in ("fusion", "edit")
