"""How the arms of a comparison are trained: a section of `medlt run` and of `medlt evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medlt.config.base import Strict

Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(gt=0, le=1)]
FEW = Field(min_length=1, max_length=6)
Metric = Literal["AP", "AUROC", "sensitivity", "F1"]


class EvaluationConfig(Strict):
    """The comparison of classifiers with and without synthetic images."""

    seeds: int = Field(3, ge=1, description="trainings per arm; use 5 for a claim; with 1 there is no verdict")
    steps: Annotated[int, Field(ge=1)] | Literal["plateau"] = Field(
        "plateau", description="training steps of every arm: a number, or plateau: the validation plateau of a pilot "
        "on real images alone"
    )  # fmt: skip
    max_steps: int = Field(
        2400, ge=32, description="most steps of the pilot; the verdict is refused if it still improves at the end"
    )
    synthetic_fraction: Share | Annotated[tuple[Share, ...], FEW] = Field(
        (0.1, 0.3), description="share of each training batch that is drawn from the synthetic images, or a few "
        "values: each arm and its control take the best on validation"
    )  # fmt: skip
    synthetic_weight: Weight | Annotated[tuple[Weight, ...], FEW] = Field(
        (0.3, 1.0), description="loss weight of a synthetic image, or a few values, as above; a real image has 1; "
        "the first is the column weight of the manifest"
    )  # fmt: skip
    n_bootstrap: int = Field(2000, ge=100, description="bootstrap samples of patients for each interval")
    metric: Metric = Field(
        "AP", description="metric of the verdict, its mean over the tail findings; another one is another experiment, "
        "so set it before any result. Validation chooses arms by AP in any case"
    )  # fmt: skip
    test_set: Literal["all", "balanced"] = Field(
        "all", description="test images that give the verdict: all, or those with balanced_test, the balanced test "
        "list of NIH-CXR-LT and MIMIC-CXR-LT 2022"
    )  # fmt: skip
    primary_arm: str | None = Field(
        None, description="`medlt evaluate` only: the arm the verdict is about; null: the best arm on validation images"
    )
    workers: int = Field(
        1, ge=1, le=64, description="processes that train arms at the same time; keep 1 on a GPU; no effect on results"
    )

    @property
    def fractions(self) -> tuple[float, ...]:
        """Return the shares that validation chooses from."""
        return self.synthetic_fraction if isinstance(self.synthetic_fraction, tuple) else (self.synthetic_fraction,)

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the loss weights that validation chooses from."""
        return self.synthetic_weight if isinstance(self.synthetic_weight, tuple) else (self.synthetic_weight,)
