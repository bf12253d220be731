"""What is made of it, how it is checked and judged, and the whole recipe.

Defaults are the published ones (arXiv 2405.01705 for fusion) unless the field says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Tag, model_validator

from medlt.config.base import Strict, by_kind
from medlt.config.data import Data
from medlt.config.learning import ClassifierConfig, CodecConfig, DenoiserConfig, SparseConfig, UNetConfig

Scheduler = Literal[
    "ddim", "ddpm", "pndm", "lms", "euler", "euler_a", "heun", "kdpm2", "kdpm2_a", "dpm++", "dpm++karras", "dpm++sde",
    "dpm++single", "deis", "unipc", "sa", "lcm", "tcd",
]  # fmt: skip


class FromNoise(Strict):
    """Sampling from noise under the label vectors of real train rows."""

    kind: Literal["noise"] = "noise"
    scheduler: Scheduler = "dpm++"
    steps: int = Field(25, ge=1)
    guidance: float = Field(3.5, ge=0)


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
    guidance: float = Field(3.5, ge=0)
    labels: Literal["cam_mass", "tail", "union"] = "cam_mass"

    @model_validator(mode="after")
    def _keep_fits(self) -> Self:
        if self.keep > self.steps:
            raise ValueError(f"keep {self.keep} is more than the {self.steps} steps there are; lower keep")
        return self


Method = Annotated[Annotated[Fusion, Tag("fusion")] | Annotated[FromNoise, Tag("noise")], by_kind("fusion")]


class Need(Strict):
    """How much of the tail to fill."""

    tail_below: int = Field(100, ge=1, description="a finding with fewer train positives is tail")
    head_above: int = Field(1000, ge=1, description="a finding with more is head; if none has, thirds are taken")
    target: int = Field(100, ge=1, description="train positives wanted for each tail finding")
    most: int = Field(500, ge=1, description="never more than this many images a finding")
    candidates: int = Field(2, ge=1, description="candidates made for each wanted image; the judge keeps the best")


class Checks(Strict):
    """What an image must pass before it is kept."""

    folds: int = Field(3, ge=2, description="patient folds of the train split; a judge never saw its parents' fold")
    quantile: float = Field(0.5, gt=0, lt=1, description="threshold: this quantile of the judge on held-out positives")
    black_below: float = Field(0.02, ge=0, le=1, description="an image of lower standard deviation is called flat")
    duplicate_above: float = Field(0.995, ge=0, le=1, description="correlation with another image that makes a copy")


class Evaluation(Strict):
    """The controlled comparison: real, duplicated, synthetic."""

    seeds: int = Field(3, ge=1)
    mix: float = Field(0.2, gt=0, lt=1, description="share of each batch drawn from the added rows")
    weight: float = Field(0.3, gt=0, le=1, description="loss weight of an added row")
    draws: int = Field(2000, ge=100, description="patient bootstrap draws")


METHOD_OF = {"fusion": "fusion", "finetune": "noise"}


class RunConfig(Strict):
    """One recipe, end to end."""

    recipe: Literal["fusion", "finetune"] = "fusion"
    out: Path
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
    sparse: SparseConfig = SparseConfig()
    denoiser: DenoiserConfig = UNetConfig()
    method: Method = Fusion()
    need: Need = Need()
    checks: Checks = Checks()
    classifier: ClassifierConfig = ClassifierConfig()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _own_method(cls, given: Any) -> Any:
        """A recipe whose config names no method has its own."""
        if not isinstance(given, dict) or given.get("recipe", "fusion") not in list(METHOD_OF):
            return given
        method = given.get("method") or {}
        if not isinstance(method, dict):
            return given
        return {**given, "method": {"kind": METHOD_OF[given.get("recipe", "fusion")]} | method}

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.method.kind != METHOD_OF[self.recipe]:
            raise ValueError(f"recipe {self.recipe} has method {METHOD_OF[self.recipe]}, not {self.method.kind}")
        return self
