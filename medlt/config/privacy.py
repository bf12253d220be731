"""Differential privacy of everything that is trained on patients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medlt.config.base import Strict
from medlt.types import GradSampleMode


class Privacy(Strict):
    """The privacy budget (epsilon, delta) of a run, for all its stages together.

    With this section and a method that starts from noise, no real image, label vector or count is read when images are
    made: see docs/how-to/privacy.md.
    """

    epsilon: float = Field(gt=0, description="budget of all trainings of the run together; smaller is more private")
    delta: float = Field(gt=0, lt=1, description="choose it well below 1 / number of patients")
    privacy_unit: Literal["patient", "image"] = Field(
        "patient", description="whose presence is protected; image is weaker if patients have several images"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which the gradient of each unit is clipped")
    max_images_per_patient: int = Field(1, ge=1, description="images of a sampled patient that one step uses, at most")
    noise_multiplicity: int = Field(
        4, ge=1, description="draws of timestep and noise (or of augmentation) per image and step"
    )
    grad_sample_mode: GradSampleMode = Field(
        GradSampleMode.AUTO, description="how gradients of units are computed; auto measures which is the fastest here"
    )
    max_physical_batch_size: int = Field(
        128, ge=1, description="images computed at once: more need more memory; no effect on the result"
    )
    secure_mode: bool = Field(
        True, description="draw noise and batches from the system's secure random numbers; false is for tests only"
    )
    classifier: bool = Field(False, description="reserve a part of the budget for `medlt train classifier`")
    findings: tuple[str, ...] = Field(
        (), description="findings to make images of, `targets.count` each; empty: all of the data"
    )
