"""What an experiment compares: sources of synthetic images, and arms, each a row of the YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medlt.config.base import Strict
from medlt.config.data import Data
from medlt.config.evaluation import EvaluationConfig
from medlt.config.learning import ClassifierConfig
from medlt.config.run import Targets

Loss = Literal[
    "balanced", "plain", "asymmetric", "class_balanced", "focal", "ldam", "logit_adjusted", "balanced_softmax"
]
TrainingStrategy = Literal["one", "drw", "crt", "pretrain", "second_stage", "head"]
WITH_ADDED: tuple[TrainingStrategy, ...] = ("one", "pretrain", "second_stage", "head")
"""Courses that say when added images are seen; the others re-balance real ones."""

REAL = "real"
CONTROL_OF = "duplicated for "
"""Begins the name of an arm's count-matched control."""


class ArmClassifierConfig(ClassifierConfig):
    """How the classifier of an arm is trained; docs/explanation/verdict.md says what each does."""

    task: Literal["multi-label", "single-label"] = "multi-label"
    size: int = Field(64, ge=32)
    steps: int = Field(400, ge=1)
    loss: Loss = "balanced"  # type: ignore[assignment]  # a wider choice than a judge's
    training_strategy: TrainingStrategy = "one"
    sampling: Literal["instance", "class_balanced"] = "instance"
    mixup: Literal["none", "mixup", "balanced"] = "none"
    augment: Literal["light", "none", "monai"] = "light"
    tau_norm: bool = False


class SourceConfig(Strict):
    """Synthetic images: a finished run folder, or the config whose `medlt augment` makes it when it is not there."""

    run: Path | None = Field(None, description="a run folder of `medlt augment` or `medlt run`")
    config: Path | None = Field(None, description="a recipe's YAML, relative to this file")
    set: tuple[str, ...] = Field((), description="overrides of that YAML, `section.key=value`")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.run is None) == (self.config is None):
            raise ValueError("give either run, a finished folder, or config, the YAML that makes it")
        if self.set and self.config is None:
            raise ValueError("set changes a config; give config in place of run")
        return self


class ArmConfig(Strict):
    """One row: a way of training, on real rows alone or with the images of a source. What is left out is as in
    `classifier` and `evaluation`."""

    source: str | None = None
    synthetic_ratio: float | None = Field(
        None, gt=0, le=100, description="images of a finding, times its train positives; null: all"
    )
    keep_top: float = Field(
        1.0, gt=0, le=1, description="share of a finding's images kept, those its judge is surest of"
    )
    labels: Literal["soft", "hard", "verifier"] = Field(
        "soft", description="hard: 0 or 1; judged: what the source's judges say of every finding"
    )
    real_duplicates: bool = Field(False, description="real parents in place of the images: a control by itself")
    synthetic_fraction: float | None = Field(None, gt=0, lt=1)
    synthetic_weight: float | None = Field(None, gt=0, le=1)
    loss: Loss | None = None
    training_strategy: TrainingStrategy | None = None
    sampling: Literal["instance", "class_balanced"] | None = None
    mixup: Literal["none", "mixup", "balanced"] | None = None
    augment: Literal["light", "none", "monai"] | None = None
    tau_norm: bool | None = None

    @model_validator(mode="after")
    def _source_fits(self) -> Self:
        given = [
            name
            for name in ("synthetic_ratio", "synthetic_fraction", "synthetic_weight")
            if getattr(self, name) is not None
        ]
        given += [name for name, usual in (("keep_top", 1.0), ("labels", "soft")) if getattr(self, name) != usual]
        if self.source is None and (given or self.real_duplicates):
            raise ValueError(f"{(given or ['duplicate'])[0]} is about added images; give the arm a source")
        if self.source is None and self.training_strategy in ("pretrain", "second_stage", "head"):
            raise ValueError(f"training_strategy {self.training_strategy} is about added images; give the arm a source")
        if self.source is not None and self.training_strategy not in (None, *WITH_ADDED):
            raise ValueError(
                f"training_strategy {self.training_strategy} re-balances real rows; choose one of {', '.join(WITH_ADDED)}"
            )
        return self


class EvaluateConfig(Strict):
    """One experiment: `medlt evaluate`."""

    output_dir: Path
    seed: int = Field(0, ge=0)
    threads: int | None = Field(1, ge=1, description="torch threads of a worker; equal bytes need an equal number")
    device: Literal["cpu", "cuda"] = "cpu"
    data: Data
    skip_unreadable: bool = False
    targets: Targets = Targets()
    classifier: ArmClassifierConfig = ArmClassifierConfig()
    evaluation_classifier: ClassifierConfig | None = Field(
        None, description="of the judges that report and neither guide nor verify; default: the classifier's settings"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    sources: Mapping[str, SourceConfig] = Field({}, description="synthetic images by name")
    arms: Mapping[str, ArmConfig] = Field(description="rows of the experiment by name; `real` is always there")

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_rows(cls, given: Any) -> Any:
        """`name:` with nothing behind it is an arm that changes nothing."""
        return {name: {} if arm is None else arm for name, arm in given.items()} if isinstance(given, dict) else given

    @property
    def artifacts_dir(self) -> None:
        """An experiment shares no trained parts."""
        return

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        if not {*self.arms} - {REAL}:
            raise ValueError("arms: nothing to compare with `real`; give at least one more, as `focal: {loss: focal}`")
        for section, name in [*(("arms", name) for name in self.arms), *(("sources", name) for name in self.sources)]:
            if not name.strip() or len(name) > 60 or not name.isprintable():
                raise ValueError(f"{section}: {name[:60]!r} is no name; use up to 60 printable characters")
        for name, arm in self.arms.items():
            if name.startswith(CONTROL_OF):
                raise ValueError(f"arms: {name!r} is a control's name, which are made by themselves; choose another")
            if arm.labels == "verifier" and self.classifier.task == "single-label":
                raise ValueError(f"arms.{name}: judges give each finding a probability of its own; use labels soft")
            if arm.source is not None and arm.source not in self.sources:
                raise ValueError(f"arms.{name}: no source named {arm.source!r}; sources: {', '.join(self.sources)}")
        if REAL in self.arms and self.arms[REAL] != ArmConfig():
            raise ValueError("arms.real is the classifier as it is; give another name to one that differs")
        chosen = self.evaluation.primary_arm
        if chosen and (chosen not in self.arms or not self.arms[chosen].source or self.arms[chosen].real_duplicates):
            raise ValueError(f"evaluation.primary_arm: {chosen!r} is no arm with synthetic images")
        return self

    @model_validator(mode="after")
    def _training_strategy_fits(self) -> Self:
        usual = self.classifier.training_strategy
        if usual in WITH_ADDED[1:]:
            raise ValueError(
                f"classifier.training_strategy: {usual} is about added images, `real` has none; give it to the arms"
            )
        for name, arm in self.arms.items():
            if arm.source is not None and arm.training_strategy is None and usual not in WITH_ADDED:
                fits = ", ".join(WITH_ADDED)
                raise ValueError(
                    f"arms.{name}: classifier.training_strategy {usual} re-balances real rows; give it one of {fits}"
                )
        return self
