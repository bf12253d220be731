"""How arms are compared: one section for the comparison of `medlt run` and for that of `medlt evaluate`."""

from __future__ import annotations

from pydantic import Field

from medlt.config.base import Strict


class EvaluationConfig(Strict):
    """Seeds and processes, and what all arms with added images share."""

    seeds: int = Field(3, ge=1, description="trainings of each arm; 5 for a claim; below 2 there is no verdict")
    synthetic_fraction: float = Field(0.2, gt=0, lt=1, description="share of each batch drawn from the added rows")
    synthetic_weight: float = Field(0.3, gt=0, le=1, description="loss weight of an added row")
    n_bootstrap: int = Field(2000, ge=100, description="patient bootstrap draws")
    primary_arm: str | None = Field(None, description="the arm to decide on; default: the best on validation")
    workers: int = Field(1, ge=1, le=64, description="processes that train arms; on a GPU leave it at 1")
