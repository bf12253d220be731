"""What no accountant knows: from which delta on a guarantee means nothing, and how clipped gradients are rounded."""

from __future__ import annotations

import math

BF16_MARGIN = 1.02
"""By how much a unit may change a sum of clipped gradients in bf16, over the clipping norm, at most, in the accounting.

bf16 rounds: clipped gradients of 1.0003 of the norm were measured, and sums of the other units that moved by 0.015.
"""


def clip_margin(precision: str) -> float:
    """Return the largest change of a sum by one unit over the clipping norm, by the precision of a training.

    The noise hides less by this factor: the accounting has noise multiplier sigma / margin.
    """
    return BF16_MARGIN if precision == "bf16" else 1.0


def delta_violation(delta: float, units: int) -> str | None:
    """Return why there is no claim if `delta` is 1 / `units` or more, with the correction; else None."""
    if delta * units < 1:
        return None
    wanted = 10.0 ** math.floor(math.log10(0.1 / units))
    return (
        f"delta {delta:g} is at least 1/{units}, which a program that publishes the whole record of one patient meets "
        f"(use a delta well below 1 / privacy.patients, here {wanted:.0e} or less)"
    )
