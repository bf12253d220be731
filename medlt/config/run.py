"""What is made of it, how it is checked and judged, and the whole recipe.

Defaults are the published ones (arXiv 2405.01705 for fusion) unless the field says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, Tag, model_validator

from medlt.config.ablation import Ablation
from medlt.config.base import Strict, Window, by_kind
from medlt.config.data import Data
from medlt.config.evaluation import EvaluationConfig
from medlt.config.guides import GuideConfig, LongtailGuideConfig, MinorityGuideConfig
from medlt.config.learning import ClassifierConfig, CodecConfig, DenoiserConfig, SparseConfig, UNetConfig
from medlt.config.privacy import Privacy

Scheduler = Literal[
    "ddim", "ddpm", "pndm", "lms", "euler", "euler_a", "heun", "kdpm2", "kdpm2_a", "dpm++", "dpm++karras", "dpm++sde",
    "dpm++single", "deis", "unipc", "sa", "lcm", "tcd",
]  # fmt: skip


class Sampling(Strict):
    """Sampling from noise under the label vectors of real train rows."""

    scheduler: Scheduler = "dpm++"
    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(
        3.5, ge=0, le=100, description="of classifier-free guidance; 1 is the conditional network alone"
    )
    guidance: tuple[GuideConfig, ...] = ()
    initial_noise_scale: float = Field(
        1.0, gt=0, description="gamma of Boost-and-Skip (arXiv 2502.06516), 1.5-2.5 with ddpm; 1 is off"
    )
    skip_steps: int = Field(0, ge=0, description="first steps left out, of Boost-and-Skip")

    @model_validator(mode="after")
    def _skip_fits(self) -> Self:
        if self.skip_steps >= self.num_inference_steps:
            raise ValueError(
                f"skip_steps {self.skip_steps} leaves none of {self.num_inference_steps} steps; lower skip_steps"
            )
        return self


class FromNoiseConfig(Sampling):
    """Nothing but classifier-free guidance, unless guides are given."""

    kind: Literal["noise"] = "noise"


class Minority(Sampling):
    """Self-guided minority sampling (arXiv 2407.11555)."""

    kind: Literal["minority"] = "minority"
    guidance: tuple[GuideConfig, ...] = (MinorityGuideConfig(),)


class Longtail(Sampling):
    """Longtail Guidance (arXiv 2502.01980)."""

    kind: Literal["longtail"] = "longtail"
    guidance: tuple[GuideConfig, ...] = (LongtailGuideConfig(),)


class ClassBalancingConfig(Strict):
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


def _several(given: Any) -> Any:
    """One number as a tuple of one."""
    return (given,) if isinstance(given, int | float) and not isinstance(given, bool) else given


Share = Annotated[float, Field(gt=0, le=1)]
Strengths = Annotated[tuple[Share, ...], BeforeValidator(_several, json_schema_input_type=Share | tuple[Share, ...])]


class Edit(Strict):
    """Image-guided edits of real tail images (SDEdit, arXiv 2108.01073): the label-safe end of fusion."""

    kind: Literal["edit"] = "edit"
    scheduler: Scheduler = "ddim"
    num_inference_steps: int = Field(50, ge=1, description="N, the length of the full schedule")
    strength: Strengths = Field(
        (0.1, 0.2, 0.3, 0.4),
        min_length=1,
        description="shares of the steps that are run, the last ones; each image draws one",
    )
    mixed: float = Field(0.0, ge=0, le=0.5, description="the most that another positive of the finding is mixed in")
    guidance_scale: float = Field(2.0, ge=0, le=100)
    guidance: tuple[GuideConfig, ...] = ()


class Diffult(Sampling):
    """DiffuLT (arXiv 2403.05170)."""

    kind: Literal["diffult"] = "diffult"
    cbdm: ClassBalancingConfig | None = ClassBalancingConfig()
    in_band_loss: InBandLoss | None = InBandLoss()


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
    num_inference_steps: int = Field(75, ge=1, description="N, the length of the full schedule")
    strength: float = Field(
        5 / 75, gt=0, le=1, description="share of the steps that are run, the last ones; 5 of 75 as published"
    )
    renoise: bool = Field(True, description="add the noise step N-k expects (SDEdit); False is the published code")
    guidance_scale: float = Field(3.5, ge=0, le=100)
    guidance: tuple[GuideConfig, ...] = ()
    labels: Literal["cam_mass", "tail", "union"] = "cam_mass"


Method = Annotated[
    Annotated[Fusion, Tag("fusion")]
    | Annotated[FromNoiseConfig, Tag("noise")]
    | Annotated[Edit, Tag("edit")]
    | Annotated[Minority, Tag("minority")]
    | Annotated[Longtail, Tag("longtail")]
    | Annotated[Diffult, Tag("diffult")],
    by_kind("fusion"),
]


class Targets(Strict):
    """How much of the tail to fill."""

    tail_below: int = Field(100, ge=1, description="a finding with fewer train positives is tail")
    head_above: int = Field(1000, ge=1, description="a finding with more is head; if none has, thirds are taken")
    count: int = Field(100, ge=1, description="train positives wanted for each tail finding")
    multiplier: float | None = Field(
        None, gt=1, le=100, description="in place of target: so many times the positives there are"
    )
    max_per_finding: int = Field(500, ge=1, description="never more than this many images a finding")
    num_candidates: int = Field(2, ge=1, description="candidates made for each wanted image; the judge keeps the best")
    max_retries: int = Field(
        0, ge=0, le=100, description="how often a wanted image of which no candidate passed is tried again"
    )


class InBandConfig(Strict):
    """How far from real positives an image may lie; beyond it is out of distribution (DiffuLT, arXiv 2403.05170)."""

    form: Literal["neighbours", "centre"] = Field("neighbours", description="centre: the published one")
    k: int = Field(5, ge=1)
    quantile: float = Field(0.95, gt=0, le=1, description="of held-out positives' distance, the width of one band")
    limit: float = Field(2.0, gt=0, description="bands that are kept")


class NearCopyConfig(Strict):
    """Drops images that lie nearer to one real train image than validation images do."""

    fpr: float = Field(0.02, gt=0, lt=1, description="share of unseen real images it would drop")
    steps: int = Field(250, ge=1, description="training of the embedding that images are compared in")


class Checks(Strict):
    """What an image must pass before it is kept."""

    folds: int = Field(3, ge=2, description="patient folds of the train split; a judge never saw its parents' fold")
    verifier_quantile: float = Field(
        0.5, gt=0, lt=1, description="threshold: this quantile of the judge on held-out positives"
    )
    min_std: float = Field(0.02, ge=0, le=1, description="an image of lower standard deviation is called flat")
    max_correlation: float = Field(0.995, ge=0, le=1, description="correlation with another image that makes a copy")
    in_band: InBandConfig | None = Field(None, description="on for diffult unless it is null")
    near_copy: NearCopyConfig | None = Field(
        None, description="on, unless it is null, for methods that begin with noise; a private run needs none"
    )


METHODS = ("fusion", "noise", "edit", "diffult", "minority", "longtail")
FROM_NOISE = ("noise", "diffult", "minority", "longtail")
"""Methods that read no pixel of a real image when they make one, so that one that looks alike should not be there."""


def complete(given: Any) -> Any:
    """Return a config's mapping with its method as a mapping, and with the checks that the method's images call for."""
    if not isinstance(given, dict):
        return given
    method = given.get("method", "fusion")
    if isinstance(method, str):
        method = {"kind": method}
    kind = method.get("kind", "fusion") if isinstance(method, dict) else getattr(method, "kind", None)
    usual: dict[str, Any] = {"in_band": {}} if kind == "diffult" else {}
    usual |= {"near_copy": {}} if kind in FROM_NOISE and given.get("privacy") is None else {}
    checks = given.get("checks")
    if usual and (checks is None or isinstance(checks, dict)):
        given = {**given, "checks": usual | (checks or {})}
    return {**given, "method": method}


class RunConfig(Strict):
    """One recipe, end to end."""

    method: Method = Fusion()
    output_dir: Path
    artifacts_dir: Path | None = Field(None, description="folder of trained parts, shared by runs on one collection")
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
    targets: Targets = Targets()
    checks: Checks = Checks()
    classifier: ClassifierConfig = ClassifierConfig()
    guidance_classifier: ClassifierConfig | None = Field(
        None, description="what longtail guidance asks; default: the classifier's settings, another network"
    )
    evaluation: EvaluationConfig | None = Field(
        EvaluationConfig(), description="the comparison of `medlt run`; null: images without a comparison"
    )
    ablation: Ablation | None = Field(None, description="what an ablation varies; `medlt run` then makes its table")
    privacy: Privacy | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return complete(given)

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.ablation is not None and self.method.kind != "fusion":
            raise ValueError(f"ablation varies method fusion, not {self.method.kind}; leave out one of them")
        if self.ablation is not None and self.ablation.downstream and self.evaluation is None:
            raise ValueError("ablation.downstream compares arms; give evaluation, or leave downstream out")
        if self.evaluation is not None and self.evaluation.primary_arm is not None:
            raise ValueError("evaluation.primary_arm is for an experiment with arms; leave it out")
        return self

    @model_validator(mode="after")
    def _private_can_be(self) -> Self:
        if self.privacy is None:
            return self
        if self.method.kind == "diffult" or self.ablation is not None:
            what = "an ablation" if self.ablation is not None else f"method {self.method.kind}"
            raise ValueError(f"privacy: {what} weighs losses by the classes of all; use method: noise")
        if self.denoiser.balance is not None:
            raise ValueError("privacy: denoiser.balance draws patients by their findings; leave it out")
        return self

    @property
    def data_independent(self) -> bool:
        """Whether images are made without a look at any real row: label vectors and numbers are not theirs either."""
        return self.privacy is not None and self.method.kind not in ("fusion", "edit")
