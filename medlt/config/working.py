"""Where images are made, and by how many processes. Nothing here changes an image."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from medlt.config.base import Strict

WORKING = ("workers", "engine")
"""Keys of a run's config that say how work is done, and not what is made."""
Kind = Literal["local", "ray"]


class EngineConfig(Strict):
    """Where the workers are that make images."""

    kind: Kind = Field("local", description="this machine, or a Ray cluster (`medlt[ray]`)")
    gpus: int = Field(0, ge=0, le=1024, description="GPUs that the workers share, one worker each at least; 0: none")
    address: str | None = Field(None, description="address of the Ray cluster; null: Ray on this machine")

    @model_validator(mode="after")
    def _address_fits(self) -> Self:
        if self.address is not None and self.kind != "ray":
            raise ValueError("engine.address is that of a Ray cluster; set engine.kind to ray, or remove it")
        return self


def _section(given: Any) -> Any:
    return {"kind": given} if isinstance(given, str) else given


Engine = Annotated[EngineConfig, BeforeValidator(_section, json_schema_input_type=EngineConfig | Kind)]
"""An engine, as its name or as a section."""
