"""The config of `medlt evaluate`: sources of synthetic images, and arms, one row of the experiment each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medlt.config.base import FilePath, Strict
from medlt.config.classifier import ClassifierConfig
from medlt.config.data import Data
from medlt.config.evaluation import EvaluationConfig
from medlt.config.run import Targets
from medlt.names import did_you_mean

Loss = Literal[
    "balanced", "plain", "asymmetric", "class_balanced", "focal", "ldam", "logit_adjusted", "balanced_softmax"
]
TrainingStrategy = Literal["one", "drw", "crt", "pretrain", "second_stage", "head"]
Batches = Literal["instance", "class_balanced"]
Mixing = Literal["none", "mixup", "balanced"]
Augmentation = Literal["light", "none", "monai"]
WITH_ADDED: tuple[TrainingStrategy, ...] = ("one", "pretrain", "second_stage", "head")
"""Strategies that say when synthetic images are used; the others re-balance real ones."""

REAL = "real"
CONTROL_OF = "duplicated for "
"""Start of the name of an arm's count-matched control."""

LOSS = "loss of the classifier; docs/explanation/verdict.md has the paper of each"
STRATEGY = (
    "stages of the training: one; drw and crt re-balance the last part; pretrain, second_stage and head say when "
    "synthetic images are used"
)
SAMPLING = "how real images are sampled: each alike, or each finding alike"
MIXUP = "mixing of pairs of images: none, MixUp, or Balanced-MixUp"
AUGMENT = "random changes of training images, never a flip: light, none, or monai (also blur, noise and dropout)"
TAU_NORM = "normalise the weights of each finding after the training (tau-norm, arXiv 1910.09217)"
AS_CLASSIFIER = "; null: as in `classifier`"
AS_EVALUATION = "; null: as in `evaluation`"


class ArmClassifierConfig(ClassifierConfig):
    """How the classifier of an arm is trained; docs/explanation/verdict.md explains each choice."""

    task: Literal["multi-label", "single-label"] = Field(
        "multi-label", description="findings may occur together, or each image has exactly one"
    )
    size: int = Field(64, ge=32, description="side of the square images it reads, pixels")
    steps: int = Field(
        400, ge=1, description="training steps of the classifiers that measure labels; for the arms: evaluation.steps"
    )
    loss: Loss = Field("balanced", description=LOSS)  # type: ignore[assignment]  # a wider choice than a verifier's
    training_strategy: TrainingStrategy = Field("one", description=STRATEGY)
    sampling: Batches = Field("instance", description=SAMPLING)
    mixup: Mixing = Field("none", description=MIXUP)
    augment: Augmentation | None = Field(None, description=AUGMENT + "; null: light, or none if `frozen`")
    tau_norm: bool = Field(False, description=TAU_NORM)


class SourceConfig(Strict):
    """Added images: a finished run, the config of a run that is made if it does not exist, real images through the
    codec of another source, or images that the phantom draws.
    """

    run: FilePath | None = Field(None, description="run folder of `medlt augment` or `medlt run`")
    config: Path | None = Field(None, description="config of a run, relative to this file")
    set: tuple[str, ...] = Field(
        (), description="overrides of that config, `section.key=value`; their paths start where those of it do"
    )

    codec_of: str | None = Field(
        None,
        description="name of another source, whose codec encodes and decodes real images; shows what the codec does",
    )
    rows: Literal["copies", "negatives"] = Field(
        "copies", description="with codec_of: copies, the coded parents of its images alone; or negatives, its images "
        "and as many coded real images without a tail finding"
    )  # fmt: skip

    drawn: Literal["fresh", "same_lesion", "new_lesion"] | None = Field(
        None, description="phantom only, what a generator could give at best: fresh, new patients with the finding; "
        "same_lesion, the lesions of train images in other patients; new_lesion, other lesions in train patients"
    )  # fmt: skip
    per_positive: int = Field(4, ge=1, le=100, description="with drawn: images of each positive train image")

    @property
    def of_run(self) -> bool:
        """Return whether the images are those of a run."""
        return self.run is not None or self.config is not None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(one is not None for one in (self.run, self.config, self.codec_of, self.drawn)) != 1:
            raise ValueError(
                "give one of run, a finished folder; config, the YAML that makes it; codec_of, another source; or "
                "drawn, what the phantom draws"
            )
        if self.set and self.config is None:
            raise ValueError("set changes a config; give config instead of run")
        return self


class ArmConfig(Strict):
    """One row: a way of training, on real images alone or with the images of a source."""

    source: str | None = Field(None, description="name of the source of synthetic images; null: real images alone")
    synthetic_ratio: float | None = Field(
        None, gt=0, le=100, description="synthetic images of a finding per real positive of it; null: all"
    )
    keep_top: float = Field(
        1.0, gt=0, le=1, description="share of a finding's images that is used, those with the highest probability of "
        "the verifier"
    )  # fmt: skip
    labels: Literal["soft", "hard", "verifier"] = Field(
        "soft", description="labels of synthetic images: as made, rounded to 0 or 1, or the verifiers' probabilities"
    )
    real_duplicates: bool = Field(
        False, description="use the real parents instead of the images, which makes the arm a control"
    )
    synthetic_fraction: float | None = Field(
        None, gt=0, lt=1, description="share of each batch that is synthetic" + AS_EVALUATION
    )
    synthetic_weight: float | None = Field(
        None, gt=0, le=1, description="loss weight of a synthetic image" + AS_EVALUATION
    )
    loss: Loss | None = Field(None, description=LOSS + AS_CLASSIFIER)
    training_strategy: TrainingStrategy | None = Field(None, description=STRATEGY + AS_CLASSIFIER)
    sampling: Batches | None = Field(None, description=SAMPLING + AS_CLASSIFIER)
    mixup: Mixing | None = Field(None, description=MIXUP + AS_CLASSIFIER)
    augment: Augmentation | None = Field(None, description=AUGMENT + AS_CLASSIFIER)
    tau_norm: bool | None = Field(None, description=TAU_NORM + AS_CLASSIFIER)

    @model_validator(mode="after")
    def _source_fits(self) -> Self:
        if self.source is None and (given := self._about_synthetic()):
            raise ValueError(f"{given[0]} is about synthetic images; give the arm a source")
        if self.source is not None and self.training_strategy not in (None, *WITH_ADDED):
            raise ValueError(
                f"training_strategy {self.training_strategy} re-balances real rows; choose one of "
                f"{', '.join(WITH_ADDED)}"
            )
        return self

    def _about_synthetic(self) -> list[str]:
        """Return the settings that have no meaning without synthetic images."""
        names = ("synthetic_ratio", "synthetic_fraction", "synthetic_weight", "keep_top", "labels", "real_duplicates")
        given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        late = self.training_strategy in WITH_ADDED[1:]
        return [*given, *([f"training_strategy {self.training_strategy}"] if late else [])]


class EvaluateConfig(Strict):
    """The config of one experiment."""

    output_dir: FilePath = Field(description="folder of the experiment: it is made, or resumed")
    artifacts_dir: FilePath | None = Field(
        None, description="folder of images and classifiers, which runs on one collection may share; null: inside the "
        "folder of the experiment"
    )  # fmt: skip
    seed: int = Field(0, ge=0, description="seed of every random number of the experiment")
    threads: int | None = Field(
        1, ge=1, description="threads of torch per worker; equal results need an equal number; null: all cores"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where networks run")
    data: Data = Field(description="where images and labels come from")
    skip_unreadable: bool = Field(False, description="list unreadable images in failures.csv and go on without them")
    targets: Targets = Field(Targets(), description="which findings are rare")
    classifier: ArmClassifierConfig = Field(ArmClassifierConfig(), description="classifier of every arm")
    evaluation_classifier: ClassifierConfig | None = Field(
        None, description="classifier that measures the labels of synthetic images, and neither guides nor verifies; "
        "null: as `classifier`"
    )  # fmt: skip
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="seeds, bootstrap and synthetic batches")
    sources: Mapping[str, SourceConfig] = Field({}, description="synthetic images, by a name of your choice")
    expect: Mapping[str, Literal["helps", "no evidence", "harms"]] = Field(
        {}, description="verdicts that arms must have if the experiment can see, as a check of the experiment itself"
    )
    arms: Mapping[str, ArmConfig] = Field(
        description="rows of the experiment, by a name of your choice; `real` is always among them"
    )

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_rows(cls, given: Any) -> Any:
        """Return arms with `name:` alone as arms that change nothing."""
        return {name: {} if arm is None else arm for name, arm in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        if not {*self.arms} - {REAL}:
            raise ValueError("arms: only `real`, so there is nothing to compare; add one, such as focal: {loss: focal}")
        for section, name in [*(("arms", name) for name in self.arms), *(("sources", name) for name in self.sources)]:
            if not name.strip() or len(name) > 60 or not name.isprintable():
                raise ValueError(f"{section}: {name[:60]!r} cannot be a name; use up to 60 printable characters")
        for name, arm in self.arms.items():
            self._check_arm(name, arm)
        for name, source in self.sources.items():
            self._check_source(name, source)
        if REAL in self.arms and self.arms[REAL] != ArmConfig():
            raise ValueError("arms.real is the classifier unchanged; give an arm that differs another name")
        for name in self.expect:
            if name not in self.arms or not self.arms[name].source:
                close = did_you_mean(name, self.arms) or "; name arms with a source"
                raise ValueError(f"expect: {name!r} is no arm with images of a source{close}")
        chosen = self.evaluation.primary_arm
        if chosen and (chosen not in self.arms or not self.arms[chosen].source or self.arms[chosen].real_duplicates):
            close = did_you_mean(chosen, self.arms) or "; choose an arm with a source"
            raise ValueError(f"evaluation.primary_arm: {chosen!r} is no arm with synthetic images{close}")
        return self

    def _check_arm(self, name: str, arm: ArmConfig) -> None:
        if name.startswith(CONTROL_OF):
            raise ValueError(f"arms: {name!r} is the name of a control, which medlt adds itself; choose another")
        if arm.labels == "verifier" and self.classifier.task == "single-label":
            raise ValueError(f"arms.{name}: verifiers give each finding its own probability; use labels: soft")
        given = self.sources.get(arm.source) if arm.source is not None else None
        if arm.labels == "verifier" and given is not None and not given.of_run:
            raise ValueError(f"arms.{name}: source {arm.source} has no verifiers; use labels: soft or hard")
        if arm.source is not None and arm.source not in self.sources:
            known = did_you_mean(arm.source, self.sources) or f"; sources: {', '.join(self.sources)}"
            raise ValueError(f"arms.{name}: no source is named {arm.source!r}{known}")

    def _check_source(self, name: str, source: SourceConfig) -> None:
        made = [other for other, one in self.sources.items() if one.of_run]
        if source.drawn is not None and self.data.kind != "phantom":
            raise ValueError(
                f"sources.{name}.drawn: only data of kind phantom can be drawn; give run or config instead"
            )
        if source.codec_of is not None and source.codec_of not in made:
            known = did_you_mean(source.codec_of, made) or f"; such sources: {', '.join(made) or 'none'}"
            raise ValueError(f"sources.{name}.codec_of: {source.codec_of!r} is no source with a run{known}")

    @model_validator(mode="after")
    def _training_strategy_fits(self) -> Self:
        usual = self.classifier.training_strategy
        if usual in WITH_ADDED[1:]:
            raise ValueError(
                f"classifier.training_strategy: {usual} is about synthetic images, and `real` has none; set it in arms"
            )
        for name, arm in self.arms.items():
            if arm.source is not None and arm.training_strategy is None and usual not in WITH_ADDED:
                fits = ", ".join(WITH_ADDED)
                raise ValueError(
                    f"arms.{name}: classifier.training_strategy {usual} re-balances real rows; give it one of {fits}"
                )
        return self
