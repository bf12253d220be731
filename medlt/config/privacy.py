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
    unit: Literal["patient", "image"] = Field("patient", description="whose presence is hidden; image is weaker")
    clip: float = Field(1.0, gt=0, description="norm a unit's gradient is clipped to")
    images_per_patient: int = Field(1, ge=1, description="of a patient who is drawn, at most so many images a step")
    multiplicity: int = Field(4, ge=1, description="draws of timestep and noise (of augmentation) an image and step")
    way: GradSampleMode = Field(
        GradSampleMode.MEASURE,
        description="how gradients are taken one by one; measure: the fastest for this network here",
    )
    physical: int = Field(128, ge=1, description="rows computed at once; memory grows with it, the result does not")
    secure: bool = Field(True, description="noise and sampling from the system's secret randomness; false: for tests")
    classifier: bool = Field(False, description="whether the budget also pays for `medlt train classifier`")
    findings: tuple[str, ...] = Field((), description="to be made, need.target images each; default: all of them")
