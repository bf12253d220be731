"""Settings of Private Evolution, the private mode that trains nothing."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from medlt.config.methods import Sampling, Share


class Evolution(Sampling):
    """Private Evolution (arXiv 2305.15560): nothing is trained; patients vote, with noise, for a denoiser's images."""

    kind: Literal["evolution"] = Field(
        "evolution", description="images of a given denoiser that noisy votes of patients chose; for private runs"
    )
    population: int = Field(
        16, ge=2, le=10_000, description="images per finding that patients choose from; more of them divide the votes"
    )
    strength: tuple[Share, ...] = Field(
        (0.7, 0.6, 0.5, 0.4), min_length=1, description="share of the steps that vary a winner, one per vote, falling; "
        "each vote costs budget; the last strength makes the images"
    )  # fmt: skip
    threshold: float = Field(
        2.0, ge=0, description="standard deviations of the noise that are subtracted from the votes for an image; what "
        "is left below 0 counts as no vote"
    )  # fmt: skip
    vote_size: int = Field(
        32, ge=4, le=256, description="side of the small images whose pixels decide which one is nearest, pixels"
    )

    @model_validator(mode="after")
    def _strength_falls(self) -> Self:
        if list(self.strength) != sorted(self.strength, reverse=True):
            raise ValueError(f"strength {', '.join(f'{one:g}' for one in self.strength)} rises; write it falling")
        return self
