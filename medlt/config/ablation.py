"""What an ablation varies, one setting at a time round a base config."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from medlt.config.base import Strict

SECTIONS = ("sparse", "method")


class Ablation(Strict):
    """One factor at a time: all other settings stay those of the base. How many images a variant: `need.most`."""

    vary: dict[str, tuple[Any, ...]] = Field(description="`section.key` -> values, of the sections sparse and method")
    seeds: int = Field(1, ge=1, description="of the plan and of the sparse code; rows of the table carry theirs")
    downstream: bool = Field(False, description="train the arms of the comparison for every variant too; costly")

    @field_validator("vary")
    @classmethod
    def _known_sections(cls, vary: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """All variants share data, codec, denoiser and judges, so only what comes after them may differ."""
        for key, values in vary.items():
            section, dot, name = key.partition(".")
            if section not in SECTIONS or not (dot and name) or "." in name:
                raise ValueError(f"{key} cannot be varied; write sparse.KEY or method.KEY")
            if not values:
                raise ValueError(f"{key} has no values; give a list")
        if not vary:
            raise ValueError("nothing is varied; give a key with its values, such as method.keep: [5, 15]")
        return vary
