"""What every section of a recipe's YAML shares: closed, frozen models that stop a misspelt key at the door."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator


class Strict(BaseModel):
    """Closed and frozen: an unknown key is an error, so is a number that is none; a built config does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _within(window: tuple[float, float]) -> tuple[float, float]:
    low, high = window
    if not 0 <= low < high <= 1:
        raise ValueError(f"window {low}..{high}: give 0 <= low < high <= 1")
    return window


Window = Annotated[tuple[float, float], AfterValidator(_within)]
"""From low to high, shares of all timesteps."""


def by_kind(default: str) -> Discriminator:
    """The tag of a union whose `kind` may be left out."""

    def kind(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)

    return Discriminator(kind)
