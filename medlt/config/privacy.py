"""Differential privacy of everything that is trained on patients."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medlt.config.base import Strict
from medlt.names import did_you_mean, no_finding
from medlt.types import GradSampleMode

PUBLIC = {
    "patients": "privacy.patients: N, a public number of train patients, rounded if the true one is secret",
    "findings": "privacy.findings: [A, B, ...], all findings of a label vector, in order",
}
"""Keys whose values a run would otherwise count, with what to write."""


class Privacy(Strict):
    """The privacy budget (epsilon, delta) of a run, for all its stages together, and what is public of its patients.

    With this section and a method that starts from noise, no real image, label vector or count is read when images are
    made, and nothing but the trainings in the ledger depends on the patients: see docs/how-to/privacy.md.
    """

    epsilon: float = Field(gt=0, description="budget of all trainings of the run together; smaller is more private")
    delta: float = Field(gt=0, lt=1, description="choose it well below 1 / patients; from there on there is no claim")
    patients: int = Field(
        ge=1, description="public number of train patients, given or rounded (of images, if that is the unit); a step "
        "draws each with probability batch_size / patients, whatever the true number"
    )  # fmt: skip
    findings: tuple[str, ...] = Field(
        min_length=1, description="all findings of a label vector, in order; others of the data are not read"
    )
    requested: tuple[str, ...] = Field(
        (), description="findings to make images of, `targets.count` each; empty: all of `findings`"
    )
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

    @model_validator(mode="before")
    @classmethod
    def _is_public(cls, given: Any) -> Any:
        """Raise ValueError for a section without what must not be taken from the patients."""
        if isinstance(given, dict) and (missing := [name for name in PUBLIC if not given.get(name)]):
            raise ValueError(f"{missing[0]} must not be taken from the patients: write {PUBLIC[missing[0]]}")
        return given

    @model_validator(mode="after")
    def _requests_fit(self) -> Self:
        if strange := [name for name in self.requested if name not in self.to_make]:
            close = did_you_mean(strange[0], self.to_make) or ";"
            names = ", ".join(self.to_make)
            raise ValueError(f"requested: {strange[0]!r} is not one of privacy.findings{close} use {names}")
        return self

    @property
    def to_make(self) -> tuple[str, ...]:
        """The findings that images can be made of: all but the label that means no finding."""
        return tuple(name for name in self.findings if name != no_finding(self.findings))
