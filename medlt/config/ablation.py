"""What an ablation varies: one setting at a time around a base config."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from medlt.config.base import Strict

SECTIONS = ("sparse", "method")


class Ablation(Strict):
    """One setting at a time; all others stay those of the base. `targets.max_per_finding` limits each variant."""

    vary: dict[str, tuple[Any, ...]] = Field(
        description="`section.key` with the list of its values, also `section.key.key`; the section is sparse or method"
    )
    seeds: int = Field(1, ge=1, description="repetitions of each variant, each with a seed of its own")
    downstream: bool = Field(False, description="also train the arms of the comparison for each variant; slow")

    @field_validator("vary")
    @classmethod
    def _known_sections(cls, vary: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """All variants share data, codec, denoiser and verifiers, so only what depends on none of these may differ."""
        for key, values in vary.items():
            section, dot, name = key.partition(".")
            if section not in SECTIONS or not dot or not all(name.split(".")):
                raise ValueError(f"{key} cannot be varied; write sparse.KEY or method.KEY")
            if not values:
                raise ValueError(f"{key} has no values; give a list")
        if not vary:
            raise ValueError("no setting is varied; give a key with its values, such as method.strength: [0.1, 0.2]")
        return vary
