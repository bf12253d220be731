"""A check: images that are not blurred."""

from pydantic import Field

from medlt.checks.parts import CheckParts
from medlt.config import Strict
from medlt.plugins import CheckPlugin
from medlt.types import Batch, Check, CheckResult


class SharpnessSettings(Strict):
    """Rejects images with little difference between neighbouring pixels."""

    least: float = Field(0.01, ge=0, le=1, description="least mean difference, on a scale of 0 to 1")


def sharpness(settings: SharpnessSettings, parts: CheckParts) -> Check:
    """Return the check. It reads no real image, so `parts` is not used."""

    def check(batch: Batch) -> list[CheckResult]:
        values = batch.images.diff(dim=-1).abs().mean((1, 2, 3)).tolist()
        return [
            CheckResult("sharpness", str(uid), value, settings.least, value >= settings.least, f"sharpness {value:.3f}")
            for uid, value in zip(batch.rows.index, values, strict=True)
        ]

    return check


PLUGIN = CheckPlugin(SharpnessSettings, sharpness, private=True)
