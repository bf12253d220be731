"""The base of every section of a config, and the types that sections share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, ValidationInfo


class Strict(BaseModel):
    """A closed, frozen section: an unknown key and an infinite number are errors, and its values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Typed(str):
    """Text of the command line. A path in it is relative to the working folder, not to the config file."""


def _absolute(given: Any, info: ValidationInfo) -> Any:
    """Return a path as an absolute one, `~` expanded; relative paths start at the folder of the config file."""
    if not isinstance(given, str | Path):
        return given
    folder = Path() if isinstance(given, Typed) else (info.context or {}).get("folder", Path())
    try:
        return (folder / Path(given).expanduser()).absolute()
    except RuntimeError:
        raise ValueError("has a ~ without a home folder; write the folder out") from None


FilePath = Annotated[Path, BeforeValidator(_absolute)]
"""A file or folder, absolute once it is read."""


def _within(window: tuple[float, float]) -> tuple[float, float]:
    low, high = window
    if not 0 <= low < high <= 1:
        raise ValueError(f"{low} to {high} is no window; give two numbers with 0 <= low < high <= 1")
    return window


Window = Annotated[tuple[float, float], AfterValidator(_within)]
"""Two shares of all timesteps, from low to high."""


def by_kind(default: str) -> Discriminator:
    """Return what selects the member of a union whose `kind` may be left out."""

    def kind(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)

    return Discriminator(kind)
