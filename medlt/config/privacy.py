"""Differential privacy of everything that is trained on patients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medlt.config.base import Strict
from medlt.types import GradSampleMode


class Privacy(Strict):
    """What a patient may lose by being in the collection, at most: (epsilon, delta), for all stages of a run together.

    With this section a run reads no real image, label vector or count when it makes images: see docs/how-to/privacy.md.
    """

    epsilon: float = Field(gt=0, description="for all that is trained in the run, composed")
    delta: float = Field(gt=0, lt=1, description="well below 1 / number of patients")
    privacy_unit: Literal["patient", "image"] = Field(
        "patient", description="whose presence is hidden; image is weaker"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="norm a unit's gradient is clipped to")
    max_images_per_patient: int = Field(1, ge=1, description="of a patient who is drawn, at most so many images a step")
    noise_multiplicity: int = Field(
        4, ge=1, description="draws of timestep and noise (of augmentation) an image and step"
    )
    grad_sample_mode: GradSampleMode = Field(
        GradSampleMode.AUTO,
        description="how gradients are taken one by one; measure: the fastest for this network here",
    )
    max_physical_batch_size: int = Field(
        128, ge=1, description="rows computed at once; memory grows with it, the result does not"
    )
    secure_mode: bool = Field(
        True, description="noise and sampling from the system's secret randomness; false: for tests"
    )
    classifier: bool = Field(False, description="whether the budget also pays for `medlt train classifier`")
    findings: tuple[str, ...] = Field((), description="to be made, need.target images each; default: all of them")
